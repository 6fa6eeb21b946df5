"""Training: settings, engine, loop, checkpoints, meters, figures."""
