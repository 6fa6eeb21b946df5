"""What a training step is measured against: the literal equations, the genome of UK Biobank, a model's cost."""
