"""How an operation is computed, by backend."""
