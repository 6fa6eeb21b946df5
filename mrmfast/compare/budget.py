"""What a comparison costs, stated before it starts: products from the model, time from the cells that are done."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mrmfast.compare.cell import CellResult
from mrmfast.compare.plan import Cell, Plan
from mrmfast.data.dataset import Dataset
from mrmfast.objectives import build_objective
from mrmfast.training.build import build_data
from mrmfast.training.memory import example_inputs, step_flops
from mrmfast.training.settings import TrainConfig


@dataclass(frozen=True)
class Cost:
    """The cost of one run of a method.

    Attributes
    ----------
    method : str
    parameters : int
        With decoders, heads and teachers; 0 without pre-training.
    flops_per_image : float
        Products of a forward and backward pass, two for a multiply-add.
    images : int
        Images that pass through the model, over all steps.
    """

    method: str
    parameters: int
    flops_per_image: float
    images: int

    @property
    def flops(self) -> float:
        """Products of the run."""
        return self.flops_per_image * self.images


def cost_of(plan: Plan, method: str) -> Cost:
    """Count the products of a run of a method, without running it.

    Raises
    ------
    UserError
        The dataset cannot be opened, or the model cannot be built.
    """
    if plan.methods[method] is None:
        return Cost(method, 0, 0.0, 0)
    config = plan.train_config(Cell(method, plan.seeds[0]))
    dataset = build_data(config)
    try:
        return _count(method, config, dataset)
    finally:
        dataset.source.close()


def _count(method: str, config: TrainConfig, dataset: Dataset) -> Cost:
    spec = dataset.genome_spec()
    torch.manual_seed(config.seed)
    model = build_objective(config.objective, config.model, config.data.image_size, spec)
    model.set_activation_checkpointing(False)
    samples = model.min_samples_per_pass(config.objective)
    flops = step_flops(model, example_inputs(model, spec, samples, torch.device("cpu")))[1] / samples
    steps = config.total_steps(len(dataset.selected))
    return Cost(method, sum(p.numel() for p in model.parameters()), flops, steps * config.batch_size)


def table(costs: list[Cost], seeds: int) -> str:
    """Return the budget as lines of text."""
    lines = [f"{'method':24} {'parameters':>12} {'GFLOP/image':>12} {'images':>12} {'PFLOP, all seeds':>17}"]
    for cost in costs:
        lines.append(
            f"{cost.method:24} {cost.parameters / 1e6:10.1f} M {cost.flops_per_image / 1e9:12.2f} {cost.images:12,} "
            f"{cost.flops * seeds / 1e15:17.4g}"
        )
    return "\n".join(lines)


def seconds_left(costs: list[Cost], done: list[CellResult], missing: list[Cell]) -> float | None:
    """Return the seconds of pre-training that are left, at the rate of the cells that are done.

    A method that has been run is its own rate; others take the mean rate. None before the first trained cell.
    """
    flops = {cost.method: cost.flops for cost in costs}
    trained = [result for result in done if result.seconds > 0 and flops[result.method]]
    if not trained:
        return None
    mean_rate = sum(flops[result.method] for result in trained) / sum(result.seconds for result in trained)
    own = {result.method: flops[result.method] / result.seconds for result in trained}
    return sum(flops[cell.method] / own.get(cell.method, mean_rate) for cell in missing)
