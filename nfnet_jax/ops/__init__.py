"""Operations with an implementation for each backend."""
