"""What the encoder learns, judged by frozen features: ``python -m benchmarks.quality``."""
