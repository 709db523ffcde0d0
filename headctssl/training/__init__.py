"""Training: the loop, optimiser, schedules, checkpoints, pretraining."""
