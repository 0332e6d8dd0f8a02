"""The Lightning side: configuration, recipes, loop, checkpoints, resume, logging."""
