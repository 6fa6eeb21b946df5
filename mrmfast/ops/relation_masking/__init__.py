"""Relation masking: the one dispatch point. Fused paths go beside ``reference.py`` and must match it."""

from mrmfast.ops.relation_masking.reference import masked_count, relation_attention

__all__ = ["masked_count", "relation_attention"]
