"""``torch.compile`` for a model: nothing, its blocks, or its whole training graph."""

from __future__ import annotations

import copyreg
import os
import pkgutil
from typing import Any, Literal

import torch
from timm.models.vision_transformer import Block

from mrmfast.cache import cache_folder
from mrmfast.errors import UserError
from mrmfast.models.genome_encoder import SNNLayer
from mrmfast.objectives.base import TrainableModule

CompileMode = Literal["off", "blocks", "whole"]
BLOCKS = (Block, SNNLayer)
# Random numbers come from PyTorch's own generators, so that dropout is that of the eager model.
OPTIONS = {"fallback_random": True}


def compile_model(model: TrainableModule, mode: CompileMode, *, zero_stage: int = 0, backend: str = "inductor") -> None:
    """Compile a model in place, before DeepSpeed wraps it; code is generated at the first step.

    Parameters
    ----------
    model : TrainableModule
        Names the method that is one graph, and the blocks that stay eager because training does not call their
        forward().
    mode : {"off", "blocks", "whole"}
        ``blocks`` compiles each transformer block and SNN layer, one graph a kind of block. ``whole`` compiles
        forward and backward of the training graph.
    zero_stage : int
        ZeRO 3 gathers parameters in hooks of modules, which no graph can hold: there each block is gathered as a whole.
    backend : str
        Of ``torch.compile``.

    Raises
    ------
    UserError
        ``whole`` under ZeRO 3, or for an objective that names no method for it.

    Notes
    -----
    Generated code is kept under the cache folder (``MRMFAST_CACHE``), unless ``TORCHINDUCTOR_CACHE_DIR`` is set:
    a second run of the same shapes compiles nothing (:func:`count_graphs` tells).
    """
    if mode == "off":
        return
    if mode == "whole" and zero_stage == 3:
        raise UserError(
            "engine.compile=whole: ZeRO 3 gathers parameters between modules; take blocks, or zero_stage 0-2"
        )
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend}
    if backend == "inductor":
        keep_code()
        options["options"] = OPTIONS
    if mode == "whole":
        name = model.compiled_method
        if name is None:
            raise UserError("engine.compile=whole: this objective is not one graph; take engine.compile=blocks")
        setattr(model, name, torch.compile(getattr(model, name), **options))
        return
    if zero_stage == 3:
        from deepspeed.utils import set_z3_leaf_module

        for block in blocks_of(model):
            set_z3_leaf_module(block, True)
    for block in blocks_of(model):
        block.forward = torch.compile(block.forward, **options)


def keep_code() -> None:
    """Point Inductor at our cache, and make its keys those of every process that traces the same graph."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Once imported, Inductor has put its own default, a folder of temporary files, there.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / "inductor")
    # A key is a hash of a pickle, and a memory format pickles as a name in the first module that holds `torch`, which
    # can be the caller's: the key would depend on what was imported first.
    copyreg.pickle(torch.memory_format, lambda value: (pkgutil.resolve_name, (str(value),)))


def count_graphs() -> tuple[int, int]:
    """Return how many graphs this process has compiled with Inductor, and how many it has read from the cache."""
    from torch._dynamo.utils import counters

    graphs = counters["inductor"]
    return graphs["fxgraph_cache_miss"] + graphs["fxgraph_cache_bypass"], graphs["fxgraph_cache_hit"]


def blocks_of(model: TrainableModule) -> list[Any]:
    """Return the modules that mode ``blocks`` compiles: those that are run through their forward()."""
    eager = {id(module) for module in model.blocks_run_in_parts()}
    return [module for module in model.modules() if isinstance(module, BLOCKS) and id(module) not in eager]
