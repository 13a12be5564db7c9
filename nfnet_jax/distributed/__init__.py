"""Runs several processes as one job: they join, check that they agree, and end together."""
