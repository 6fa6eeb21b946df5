"""Distillation of a genome-and-image teacher into an image-only student (Xing et al.; MICCAI 2022).

The losses, their refinement and the networks of the published code; see ``docs/methods/xing.md``.
"""

from mrmfast.tasks.xing.distillation import Distillation, XingConfig
from mrmfast.tasks.xing.networks import FusionTeacher, PathHead

__all__ = ["Distillation", "FusionTeacher", "PathHead", "XingConfig"]
