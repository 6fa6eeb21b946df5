"""Training objectives, by the name that the config uses."""

from mrmfast.objectives.mrm import MRM

OBJECTIVES = {"mrm": MRM}
