"""MultiMAE (Bachmann, Mizrahi, Atanov, Zamir; ECCV 2022): predict what is masked of image and genome from the rest.

See ``docs/methods/multimae.md``.
"""

from mrmfast.objectives.multimae.objective import MultiMAE, MultiMAEConfig

__all__ = ["MultiMAE", "MultiMAEConfig"]
