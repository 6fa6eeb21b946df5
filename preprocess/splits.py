"""Arguments of the split into training and test participants, and families from a table of kinship."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import networkx

from mrmfast.errors import UserError
from mrmfast.formats.pseudonyms import Pseudonyms
from mrmfast.formats.splits import SplitRule

# Half of the way, on a log scale, from second-degree (1/8) to third-degree relatives (1/16), as KING draws it.
KINSHIP = 0.0884


def fraction(below: float) -> Callable[[str], float]:
    """Return an argparse type: a number from 0 up to, not including, `below`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < below:
            raise argparse.ArgumentTypeError(f"must be a number of at least 0 and below {below:g} (got {text!r})")
        return value

    return parse


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that decide who is a training participant."""
    parser.add_argument("--split-seed", type=int, default=0, help="seed of the train/test split (default: %(default)s)")
    parser.add_argument(
        "--test-fraction", type=fraction(1), default=0.2, help="fraction held out for testing (default: %(default)s)"
    )
    parser.add_argument(
        "--kinship",
        type=Path,
        metavar="FILE",
        help="table of pairs with their kinship (KING's .kin0 or .kin, plink2 --make-king-table, UK Biobank's "
        "ukb_rel.dat): related participants are on one side of the split; the same for all commands of a dataset",
    )
    parser.add_argument(
        "--kinship-threshold",
        type=fraction(1),
        default=KINSHIP,
        metavar="K",
        help="least kinship coefficient of related participants (default: %(default)s, second degree)",
    )


def split_rule(arguments: argparse.Namespace, pseudonyms: Pseudonyms) -> SplitRule:
    """Return the split rule of the arguments; print the number of families.

    Raises
    ------
    UserError
        The table of kinship is not readable.
    """
    if arguments.kinship is None:
        return SplitRule(arguments.split_seed, arguments.test_fraction)
    graph = networkx.Graph()
    graph.add_edges_from(_related(arguments.kinship, arguments.kinship_threshold))
    families = [pseudonyms.of(sorted(family)).tolist() for family in networkx.connected_components(graph)]
    print(
        f"kinship: {graph.number_of_edges()} pairs of {arguments.kinship_threshold} or more, "
        f"{graph.number_of_nodes()} people in {len(families)} families, each on one side of the split"
    )
    return SplitRule.of_families(arguments.split_seed, arguments.test_fraction, families)


def _related(path: Path, threshold: float) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a table with at least a kinship coefficient, without withdrawn participants."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline()
            delimiter = "," if "," in header else None  # white space
            columns = [name.strip().lstrip("#").casefold() for name in header.split(delimiter)]
            first, second, kinship = (
                _column(path, columns, *names) for names in (("id1", "iid1"), ("id2", "iid2"), ("kinship",))
            )
            for number, line in enumerate(file, start=2):
                cells = [cell.strip() for cell in line.split(delimiter)]
                if not line.strip():
                    continue
                if len(cells) != len(columns):
                    raise UserError(
                        f"{path}, line {number}: has {len(cells)} cells, the header {len(columns)}; correct the line"
                    )
                pair = cells[first], cells[second]
                if _number(path, number, cells[kinship]) >= threshold and not any(map(_is_withdrawn, pair)):
                    yield pair
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); fix --kinship") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not text in UTF-8; decompress it, or convert it (iconv -f latin1 -t utf-8)"
        ) from error


def _column(path: Path, columns: list[str], *names: str) -> int:
    for name in names:
        if name in columns:
            return columns.index(name)
    raise UserError(
        f"{path}: has no column {names[0].upper()}; give a table of KING (--related or --kinship) or of plink2 "
        "--make-king-table with its header"
    )


def _number(path: Path, line: int, cell: str) -> float:
    """Return a kinship coefficient; -infinity where it is missing."""
    try:
        value = float(cell)
    except ValueError:
        if cell.upper() in ("NA", "."):
            return -math.inf
        raise UserError(f"{path}, line {line}: the kinship is not a number; correct the line") from None
    return -math.inf if math.isnan(value) else value


def _is_withdrawn(participant: str) -> bool:
    """UK Biobank replaces the ids of withdrawn participants by negative numbers, which several people may share."""
    return participant in ("", "0") or participant.startswith("-")
