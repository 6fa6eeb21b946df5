"""Encoders and decoders. They import without Triton, know nothing of data or objectives."""
