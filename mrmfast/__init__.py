"""mrmfast: streaming pre-training of medical image encoders with genetics (Masked Relation Modeling)."""
