"""Masked Relation Modeling (Yang, Li, Li, Yuan; ICCV 2023).

To read in the paper's order: ``objective`` (the whole), ``encoders``, ``relation`` (relation masking),
``reconstruction``, ``matching``.
"""

from mrmfast.objectives.mrm.config import MaskConfig, MatchConfig, MRMConfig, ReconstructConfig
from mrmfast.objectives.mrm.objective import MRM

__all__ = ["MRM", "MRMConfig", "MaskConfig", "MatchConfig", "ReconstructConfig"]
