"""Our models at the sizes of a case, in float64."""

import re
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace

import torch

from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.training.optimiser import Schedule, build_optimiser

CPU = torch.device("cpu")
BASE = "vit_base_patch16_224"


@contextmanager
def float64():
    """Build in float64 from the start: fixed positions are not rounded to float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_encoder(sizes, **arguments):
    """Build the image encoder of a case's ``sizes``; further arguments are those of :class:`ImageEncoder`."""
    return ImageEncoder(
        BASE,
        sizes["img_size"],
        sizes["depth"],
        **arguments,
        patch_size=sizes["patch"],
        embed_dim=sizes["width"],
        num_heads=sizes["heads"],
        mlp_ratio=sizes["mlp_ratio"],
    )


def published_encoder(encoder, frozen=False):
    """Return the encoder's parameters by timm's names, which the files use: the trainable ones, or all."""
    return {name.removeprefix("tokens."): p for name, p in encoder.named_parameters() if frozen or p.requires_grad}


def watch(**modules):
    """Return a dict that holds, by the names given, the inputs and the output of each module's last call."""
    seen = {}

    def remember(name):
        def hook(module, inputs, named, output):
            seen[name] = ((*inputs, *named.values()), output)

        return hook

    for name, module in modules.items():
        module.register_forward_hook(remember(name), with_kwargs=True)
    return seen


def check_step(checks, model, parameters, config, *, others=(), step=0, steps=1):
    """Compare the parameter groups, and one optimiser step from the gradients that the model has.

    Parameters
    ----------
    checks : Checks
        Expects ``optimizer_step``.
    model : TrainableModule
    parameters : dict of str to Parameter
        Trainable ones by published name.
    config : OptimiserConfig
        Its rate and betas are replaced by the case's.
    others : list of int
        Elements of the tensors that are in the published groups, but are not trained.
    step, steps : int
        Where in the run the step is: groups may be frozen at first.
    """
    golden = checks.expected["optimizer_step"]
    config = replace(config, lr=checks.at("optimizer_step", "lr"), betas=tuple(checks.at("optimizer_step", "betas")))
    config = replace(config, schedule="mae", warmup=0, final=1)  # the case's rate
    names = {id(parameter): name for name, parameter in parameters.items()}
    ours = defaultdict(list)
    for group in build_optimiser(model, config, CPU).param_groups:
        ours[group["weight_decay"]] += group["params"]
    for number, group in enumerate(golden["groups"]):
        members = ours.pop(group["weight_decay"], [])
        path = ("optimizer_step", "groups", number)
        checks.at(*path, "weight_decay")
        checks.same(len(members) + len(others), *path, "tensors")
        checks.same(sum(p.numel() for p in members) + sum(others), *path, "numbers")
        if "names" in group:
            checks.same({names[id(p)] for p in members}, *path, "names", convert=set)
    checks.failures += [f"optimizer_step: a group with weight decay {decay} of ours alone" for decay in ours]
    optimiser = build_optimiser(model, config, CPU, flat_over=1)
    checks.same(optimiser.param_groups[0]["eps"], "optimizer_step", "eps")
    Schedule(optimiser, config, steps).step_update(step)
    optimiser.step()
    for name in golden["after"]:
        checks.stat(parameters[name], "optimizer_step", "after", name)


def check_rates(checks, config, steps, *further, shift=0, keys=("lr",)):
    """Compare ``schedule values``: rows of the time, of `keys` of a parameter group, and of functions of the time."""
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    schedule, rows = Schedule(optimiser, config, steps), []
    for time, *_ in checks.expected["schedule values"]["values"]:
        schedule.step_update(time + shift)
        group = optimiser.param_groups[0]
        rows.append([time, *(group[key] for key in keys), *(function(time) for function in further)])
    checks.numbers_each(rows, "schedule values", "values")


def clip_of(case):
    """The norm to which the note of a case's optimiser step says that gradients are clipped."""
    return float(re.search(r"clipped to (?:norm )?([0-9.]+)", case["expected"]["optimizer_step"]["note"])[1])
