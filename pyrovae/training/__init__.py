"""Training: the step, the loop, schedules and checkpoints."""
