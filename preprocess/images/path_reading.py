"""What the path of an image file says about the person in it, file by file; :mod:`.layouts` compares the files."""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath

from preprocess.images.folder_kinds import (
    PERSON_WORDS,
    PLAIN_DATE,
    VISIT,
    Kind,
    folded,
    folder_kind,
    is_hash,
    word_set,
    words,
)
from preprocess.images.sources import EYES

# A TCGA barcode: project, site and patient; then sample, portion and slide. GTEx and CPTAC name donors likewise.
BARCODE = re.compile(
    r"(?<![A-Z0-9])(?P<slide>(?P<participant>TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}|GTEX-[A-Z0-9]{4,5}|C3[LN]-[0-9]{5})"
    r"(?:-[A-Z0-9]+)*)(?![A-Z0-9])",
    re.IGNORECASE,
)
# {participant}_{field}_{instance}_{array}; 21015 and 21016 are the fundus photographs of the two eyes.
UK_BIOBANK = re.compile(r"([0-9]+)_(21015|21016)(?=[_.]|$)|([0-9]{7})_[0-9]{4,5}_[0-9]+_[0-9]+")
PERSON_NAME = re.compile(
    rf"((?:{PERSON_WORDS})[ _-]?(?:id[ _-]?)?[a-z]{{0,2}}\d+|p\d{{3,}}|sub-(?:[a-z\d]*\d|[a-z]+))(?=[ _.(-]|$)",
    re.IGNORECASE,
)
_EYE = r"(?P<eye>left|right|od|os|l|r)"
EYE_NAMES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?P<id>.+?)[ _.-]+{_EYE}(?:[ _-]?eye)?(?P<rest>[\W_].*|(?<![lr])\d+)?",
        rf"(?P<id>.*\d){_EYE}(?P<rest>)",
    )
]
_VISIT_END = re.compile(rf"(.+?)[ _.-]+({VISIT}|{PLAIN_DATE})", re.IGNORECASE)
_VISIT_START = re.compile(rf"({VISIT}|{PLAIN_DATE})[ _.-]+(.+)", re.IGNORECASE)
VIEW_WORDS = word_set(
    """
    eye macula disc disk fovea centre center central optic nerve fundus image img photo pic scan retina retinal
    field cfp faf oct color colour view frontal lateral copy frame dsc dscn im
    """
)
_TRANSPARENT = (Kind.EYE, Kind.VISIT, Kind.GENERIC)


@dataclass(frozen=True)
class FileName:
    """What a file name says.

    Attributes
    ----------
    participant : str
        Empty if the name holds none.
    source : {"ukb", "person", "eye", "word", "number", ""}
        UK Biobank's form; a word for a person with a number; an identifier with a digit before an eye; other text
        before an eye, which ends the name; nothing but a long number or hash, which names a person below folders of
        eyes or visits.
    eye, visit : str
        Empty if unknown.
    rest : str
        Folded name without the eye: two names of one rest differ in the eye only.
    bare : bool
        The name consists of an eye, words of views and numbers: it names nobody.
    numbers : bool
        Whether a bare name holds numbers.
    dated : bool
        A date precedes the participant: a short number may count the images of a day.
    """

    participant: str = ""
    source: str = ""
    eye: str = ""
    visit: str = ""
    rest: str = ""
    bare: bool = False
    numbers: bool = False
    dated: bool = False


@dataclass(frozen=True)
class PathReading:
    """What a path says.

    Attributes
    ----------
    file : str
    folders : tuple of (str, Kind)
        From the source folder down.
    stem : str
        File name without suffix.
    name : FileName
    """

    file: str
    folders: tuple[tuple[str, Kind], ...]
    stem: str
    name: FileName

    @property
    def parent(self) -> str:
        """Path of the folder."""
        return "/".join(name for name, _ in self.folders)

    def positions(self, *kinds: Kind, start: int = 0) -> list[int]:
        """Return the positions of the folders of some kinds, from `start` on."""
        return [number for number, (_, kind) in enumerate(self.folders) if kind in kinds and number >= start]

    def scope(self, end: int | None = None) -> tuple[tuple[str, Kind], ...]:
        """Return the folders (above position `end`) that are no eye, visit or generic word."""
        return tuple(folder for folder in self.folders[:end] if folder[1] not in _TRANSPARENT)

    def metadata(self) -> dict[str, str]:
        """Return what is known of eye, visit, class and slide."""
        folders: dict[Kind, list[str]] = {}
        for name, kind in self.folders:
            folders.setdefault(kind, []).append(name)
        known = {
            "eye": self.name.eye or eye_of(folders.get(Kind.EYE, [""])[-1]),
            "visit": "/".join(folders.get(Kind.VISIT, [])) or self.name.visit,
            "class": folders.get(Kind.CLASS, [""])[-1],
            "slide": folders.get(Kind.SLIDE, [""])[-1],
        }
        return {key: value for key, value in known.items() if value}


def read_path(file: str) -> PathReading:
    """Read a path relative to the source folder."""
    path = PurePosixPath(unicodedata.normalize("NFC", file))
    folders = tuple((name, _folder_kind(name)) for name in path.parts[:-1])
    if any(kind in (Kind.ID, Kind.PERSON) for _, kind in folders):
        folders = tuple((name, Kind.VISIT if kind is Kind.YEAR and len(name) > 4 else kind) for name, kind in folders)
    return PathReading(file, folders, path.stem.strip(), read_name(path.stem.strip()))


_folder_kind = functools.lru_cache(maxsize=65_536)(folder_kind)


def eye_of(text: str) -> str:
    """Return ``left``, ``right`` or an empty text."""
    return next((EYES[word] for word in re.split(r"[\W_]+", folded(text)) if word in EYES), "")


def read_name(stem: str) -> FileName:
    """Read a file name without suffix."""
    if match := UK_BIOBANK.match(stem):
        return FileName(match[1] or match[3], "ukb", EYES.get(match[2] or "", ""), rest=folded(stem))
    match = next((match for pattern in EYE_NAMES if (match := pattern.fullmatch(stem))), None)
    eye = EYES[match["eye"].lower()] if match else ""
    rest = f"{folded(match['id'])} {folded(match['rest'] or '')}" if match else folded(stem)
    if person := PERSON_NAME.match(stem):
        return FileName(person[1], "person", eye or eye_of(stem[person.end() :]), rest=rest)
    participant, visit, dated = _without_visit(match["id"]) if match else ("", "", False)
    if re.search(r"\d", participant):
        return FileName(participant, "eye", eye, visit, rest, dated=dated)
    parts = [part for part in re.split(r"[\W_]+|(?<=\D)(?=\d)|(?<=\d)(?=\D)", folded(stem)) if part]
    eyes = {EYES[part] for part in parts if part in EYES and not part.isdecimal()}
    if eyes and all(part.isdecimal() or part in EYES or part in VIEW_WORDS for part in parts):
        without = " ".join(part for part in parts if part.isdecimal() or part not in EYES)
        return FileName("", "", eyes.pop() if len(eyes) == 1 else "", "", without, True, any(map(str.isdecimal, parts)))
    if match and not match["rest"]:
        return FileName(participant, "word", eye, visit, rest)
    if (stem.isdecimal() and len(stem) >= 4 and stem[0] != "0") or is_hash(folded(stem)):
        return FileName(stem, "number", rest=rest)
    return FileName(eye=eye, rest=rest)


def _without_visit(text: str) -> tuple[str, str, bool]:
    """Return an identifier without a date or visit at its end or start, the visit, and whether it is a date before."""
    if match := _VISIT_START.fullmatch(text):
        return match[2], match[1], match[1][:1].isdecimal()
    if match := _VISIT_END.fullmatch(text):
        return match[1], match[2], False
    return text, "", False


def is_counter(participant: str) -> bool:
    """Whether an identifier may count images: a short number, alone or after words such as ``img``."""
    digits = re.sub(r"\D", "", participant)
    return len(digits) < 4 and VIEW_WORDS.issuperset(words(participant))
