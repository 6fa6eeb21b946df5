"""Pre-training objectives, by the name that the config uses; each is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mrmfast.config import nearest
from mrmfast.errors import UserError

if TYPE_CHECKING:
    from mrmfast.batch import GenomeSpec
    from mrmfast.models.config import ModelConfig
    from mrmfast.objectives.base import Objective

OBJECTIVES = {
    "attmask": "mrmfast.objectives.attmask:AttMask",
    "contig": "mrmfast.objectives.contig:ContIG",
    "m3ae": "mrmfast.objectives.m3ae:M3AE",
    "mae": "mrmfast.objectives.mae:MAE",
    "mcbeit": "mrmfast.objectives.mcbeit:McBEiT",
    "mocov3": "mrmfast.objectives.mocov3:MoCoV3",
    "mrm": "mrmfast.objectives.mrm:MRM",
    "multimae": "mrmfast.objectives.multimae:MultiMAE",
    "simclr": "mrmfast.objectives.simclr:SimCLR",
    "simmim": "mrmfast.objectives.simmim:SimMIM",
}


def load_objective(name: str) -> type[Objective]:
    """Import the class of an objective.

    Raises
    ------
    UserError
        No objective has this name.
    """
    if name not in OBJECTIVES:
        near = nearest(name, list(OBJECTIVES))
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(OBJECTIVES)}"
        raise UserError(f"objective.name={name}: no such objective; {hint}")
    module, _, cls = OBJECTIVES[name].partition(":")
    loaded: type[Objective] = getattr(import_module(module), cls)
    return loaded


def objective_config(name: str) -> type[Any]:
    """Return the config dataclass of an objective."""
    return load_objective(name).Config


def build_objective(config: Any, model: ModelConfig, image_size: int, genome: GenomeSpec | None) -> Objective:
    """Build an objective on a fresh image encoder.

    Parameters
    ----------
    config : dataclass
        The ``Config`` of the objective ``name``.
    model : ModelConfig
    image_size : int
        Pixels.
    genome : GenomeSpec or None
        What the dataset has; not passed on to an objective that uses no genetics.

    Raises
    ------
    UserError
        The objective needs genetics, and there are none; or the model cannot be built.
    """
    from mrmfast.models.genome_encoder import GenomeInput
    from mrmfast.models.image_encoder import ImageEncoder

    objective = load_objective(config.name)
    if objective.genetics == "required" and genome is None:
        raise UserError(f"objective.name={config.name}: learns from genetics; set data.modalities, or add some")
    used = None
    if genome is not None and objective.genetics != "unused":
        used = GenomeInput(genome, model.genome_layers, model.alpha_dropout)
    design = objective.encoder_design(config)
    return objective(config, ImageEncoder(model.arch, image_size, model.depth, design), used)
