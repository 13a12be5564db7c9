"""Training: the step, the loop, and evaluation."""
