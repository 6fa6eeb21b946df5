"""Masked Relation Modeling (Yang, Li, Li, Yuan; ICCV 2023)."""

from mrmfast.objectives.mrm.config import ModelConfig, MRMConfig
from mrmfast.objectives.mrm.objective import MRM

__all__ = ["MRM", "MRMConfig", "ModelConfig"]
