"""Names compared between the files of a source folder: which repeat, and which are of one person."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable

from preprocess.images.folder_kinds import Kind, folded, words
from preprocess.images.path_reading import PathReading, is_counter


def place(reading: PathReading) -> tuple[str, str]:
    """Return folder and name without suffix."""
    return reading.parent, folded(reading.stem)


def all_but_eye(reading: PathReading) -> tuple[str, str]:
    """Return folder and name without the eye."""
    return reading.parent, reading.name.rest


def stem_key(reading: PathReading) -> str:
    """Return a file name without suffix, in which case does not count."""
    return folded(reading.stem)


def in_several(
    readings: Iterable[PathReading], key: Callable[[PathReading], Hashable], of: Callable[[PathReading], Hashable]
) -> set[Hashable]:
    """Return the keys that occur with several values of `of`, without regard to empty values."""
    values: dict[Hashable, set[Hashable]] = defaultdict(set)
    for reading in readings:
        values[key(reading)].add(of(reading))
    return {name for name, several in values.items() if len(several) > 1}


def unambiguous(readings: list[PathReading]) -> list[PathReading]:
    """Return the files whose names identify: none of those with an ID if an ID may stand for two people."""
    weak = [reading for reading in readings if reading.name.source == "word"]
    several = in_several(weak, _name, lambda reading: reading.scope())
    named = [reading for reading in weak if _name(reading) not in several]
    named += _numbers_in_eyes_and_visits(readings)
    strong = [reading for reading in readings if reading.name.source in ("person", "eye")]
    repeated = in_several(strong, lambda reading: (_name(reading), reading.name.eye, reading.name.rest), _place_of_name)
    spread = in_several(strong, _name, _place_of_name)
    conflict = bool(repeated) or any(
        _name(reading) in spread and not _identifies_across_classes(reading) for reading in strong
    )
    return named if conflict else named + strong


def _name(reading: PathReading) -> str:
    return folded(reading.name.participant)


def _place_of_name(reading: PathReading) -> tuple[tuple[str, Kind], ...]:
    """Return the folders within which a name is of one person."""
    participant = reading.name.participant
    if not is_counter(participant):
        return reading.scope()
    if words(participant):  # img_1_left
        return reading.folders
    # 1_left may be the first of a day, but is the same person at each visit of a study.
    date = ((reading.name.visit, Kind.VISIT),) if reading.name.dated else ()
    return date + tuple(
        (name, kind)
        for name, kind in reading.folders
        if kind not in (Kind.EYE, Kind.GENERIC) and not (kind is Kind.VISIT and name[:1].isalpha())
    )


def _numbers_in_eyes_and_visits(readings: list[PathReading]) -> list[PathReading]:
    """Return the files such as left/1000012.jpg, right/1000012.jpg: long numbers in folders of eyes or visits only."""
    numbers = [reading for reading in readings if reading.name.source == "number"]
    apart = all(reading.positions(Kind.EYE, Kind.VISIT) for reading in numbers)
    return numbers if apart and len({reading.scope() for reading in numbers}) == 1 else []


def _identifies_across_classes(reading: PathReading) -> bool:
    """Whether a name identifies in all folders: these are classes or splits, and the name is no counter of images."""
    grades = all(
        kind in (Kind.CLASS, Kind.SPLIT) or (kind is Kind.NUMBER and name.isdecimal() and len(name) == 1)
        for name, kind in _place_of_name(reading)
    )
    return grades and not (words(reading.name.participant) and is_counter(reading.name.participant))
