"""Several processes as one job: how they join, compare themselves and end together."""
