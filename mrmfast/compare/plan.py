"""The plan of a comparison: a YAML file that names what all runs share, the methods, the seeds and the evaluations."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Le, Len

from mrmfast import config as configs
from mrmfast.errors import UserError
from mrmfast.evaluation import load_evaluation
from mrmfast.evaluation.base import Evaluation
from mrmfast.training.settings import TrainConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")  # no hyphen: it separates method and seed in names of cells
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]


class Cell(NamedTuple):
    """One independent job: a method pre-trained with a seed, and evaluated.

    Attributes
    ----------
    method : str
    seed : int
    """

    method: str
    seed: int

    @property
    def name(self) -> str:
        """``METHOD-SEED``: the name of the run's folder too."""
        return f"{self.method}-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes
    ----------
    config : str
        What all runs share: a YAML file, or the name of a config that comes with mrmfast.
    methods : dict of str to (list of str or None)
        Name in the table -> the ``key=value`` that only this method has, as for ``mrmfast train``; None: the encoder is
        evaluated as it is initialised, without pre-training.
    overrides : list of str
        ``key=value`` of all runs.
    seeds : list of int
        Each method is trained once per seed; runs of one seed share order and augmentation.
    evaluations : dict of str to dict
        Name in the table -> section of an evaluation (``mrmfast/evaluation``).
    reference : str, optional
        The method that the others are compared with; the first by default.
    """

    config: str
    methods: Annotated[dict[str, list[str] | None], Len(1)]
    evaluations: Annotated[dict[str, dict[str, Any]], Len(1)]
    overrides: list[str] = field(default_factory=list)
    seeds: Annotated[list[Seed], Len(1)] = field(default_factory=lambda: [0, 1, 2])
    reference: str | None = None

    def __post_init__(self) -> None:
        for section in ("methods", "evaluations"):
            for name in getattr(self, section):
                if not NAME.fullmatch(name):
                    raise UserError(f"{section}: {name!r} is not a name of letters, digits, _ and .")
        if len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds={self.seeds}: names a seed twice")
        if self.reference is not None and self.reference not in self.methods:
            raise UserError(f"reference={self.reference}: no such method; there are {', '.join(self.methods)}")

    @property
    def compared_with(self) -> str:
        """The reference."""
        return self.reference or next(iter(self.methods))

    def cells(self) -> list[Cell]:
        """Return all cells: all methods of the first seed, then of the next, so that early tables are fair."""
        return [Cell(method, seed) for seed in self.seeds for method in self.methods]

    def cell(self, name: str) -> Cell:
        """Return a cell by its name.

        Raises
        ------
        UserError
            The plan has no such cell.
        """
        by_name = {cell.name: cell for cell in self.cells()}
        if name not in by_name:
            near = configs.nearest(name, list(by_name))
            hint = f"did you mean {near}?" if near else "see --list"
            raise UserError(f"--cell {name}: the plan has no such cell; {hint}")
        return by_name[name]

    def settings(self, cell: Cell) -> list[str]:
        """Return the ``key=value`` of a cell's run, without those that say where it is written."""
        return [*self.overrides, *(self.methods[cell.method] or []), f"seed={cell.seed}"]

    def train_config(self, cell: Cell) -> TrainConfig:
        """Return the config of a cell's run.

        Raises
        ------
        UserError
            The config or an override is wrong.
        """
        return configs.load(TrainConfig, self.config, self.settings(cell))

    def digest(self, cell: Cell) -> str:
        """Identify what a cell's scores depend on; where it runs and is written does not count."""
        config = asdict(self.train_config(cell))
        for section in ("run", "engine"):
            del config[section]
        trained = self.methods[cell.method] is not None
        text = json.dumps([config, trained, self.evaluations], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def build_evaluations(self, where: str) -> dict[str, Evaluation]:
        """Build the evaluations.

        Raises
        ------
        UserError
            A section is wrong, or a library is missing.
        """
        built = {}
        for name, section in self.evaluations.items():
            if not isinstance(kind := section.get("name"), str):
                raise UserError(f"{where}: evaluations.{name}.name is missing; say which evaluation, e.g. linear_probe")
            evaluation = load_evaluation(kind)
            built[name] = evaluation(configs.build(evaluation.Config, section, where, ("evaluations", name)))
        return built


def read_plan(path: str, overrides: list[str], find_config: Any) -> Plan:
    """Read a plan.

    Parameters
    ----------
    path : str
    overrides : list of str
        ``key=value`` for all runs, after those of the plan.
    find_config : callable
        Name of a config -> its file.

    Raises
    ------
    UserError
        The plan, an evaluation or the config of a method is wrong. Everything is checked before anything runs.
    """
    tree = configs.read(path)
    tree["overrides"] = [*(tree.get("overrides") or []), *overrides]
    plan = configs.build(Plan, {**tree, "config": find_config(str(tree.get("config", "")))}, path)
    plan.build_evaluations(path)
    for method in plan.methods:
        plan.train_config(Cell(method, plan.seeds[0]))
    return plan
