"""Tasks that a pre-trained encoder is fine-tuned on."""
