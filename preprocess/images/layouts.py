"""The participants of image files by recognised layouts of paths.

A name that stands in one place only identifies. A name that stands in several folders identifies where the folders
differ in eye or visit; nowhere else, since two people must not become one participant. What stays ambiguous is an error
with remedies.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise

from mrmfast.errors import UserError
from preprocess.images.folder_kinds import Kind, folded
from preprocess.images.path_comparison import all_but_eye, in_several, place, stem_key, unambiguous
from preprocess.images.path_reading import BARCODE, PathReading, is_counter, read_path

BARCODES, UKB_NAMES = "barcodes (TCGA, GTEx, CPTAC)", "UK Biobank names"
FOLDERS, NAMES = "folders of people or slides", "names with a person or an eye"
CLASSES, OWN = "folders of classes or splits, each image a participant", "no ID, each image a participant"
# One participant by two of these groups would be a coincidence of names.
_GROUPS = {BARCODES: "name", UKB_NAMES: "name", NAMES: "name", FOLDERS: "folder", CLASSES: "own", OWN: "own"}
_FOLDERS_OF_PEOPLE = (Kind.ID, Kind.NUMBER, Kind.WORD, Kind.YEAR)

REMEDY = (
    "state them with --participant-pattern '^(?P<participant>[^/]+)/' (the first folder names the person), with "
    "--participant-pattern '^(?P<participant>.+)[.]' (each image is a separate participant), or with "
    "--participant-table FILE"
)


class Ambiguous(Exception):  # noqa: N818 - a verdict on a layout
    """Paths do not identify people; the message is the reason."""


@dataclass(frozen=True)
class Identity:
    """The participant of a file, and the layout that identifies it."""

    file: str
    participant: str
    metadata: dict[str, str]
    layout: str


def identify(files: list[str]) -> list[Identity]:
    """Find the participant of every file.

    Parameters
    ----------
    files : list of str
        Paths relative to the source folder.

    Raises
    ------
    UserError
        The paths are ambiguous.
    """
    readings = [read_path(file) for file in files]
    try:
        layout = _Layout(readings)
        identities = [layout.identify(reading) for reading in readings]
        layout.check(identities)
    except Ambiguous as error:
        raise UserError(f"the paths below SRC do not tell the people apart: {error}; {REMEDY}") from None
    return identities


Found = tuple[str, str, dict[str, str]]  # participant, layout, further metadata


class _Layout:
    """What the paths of all files say together."""

    def __init__(self, readings: list[PathReading]) -> None:
        # Folders that all files share tell nobody apart.
        self.common = _common_folders([_names(reading) for reading in readings])
        self.scopes: dict[str, set[object]] = defaultdict(set)  # folder of a person -> where it stands
        rest = [reading for reading in readings if not self._settled(reading)]
        self.named = {reading.file for reading in unambiguous(rest)}
        plain = [reading for reading in rest if reading.file not in self.named]
        self.repeated = in_several(plain, stem_key, lambda reading: reading.parent)
        self.repeated_kinds = {self._kind(reading) for reading in plain if stem_key(reading) in self.repeated}
        self.twins = Counter(map(place, readings))
        self.images_in = Counter(reading.parent for reading in plain)
        self.crowded_kinds = {self._kind(reading) for reading in plain if self.images_in[reading.parent] > 1}
        self.pairs = in_several(plain, all_but_eye, lambda reading: reading.name.eye)

    def identify(self, reading: PathReading) -> Identity:
        """Return the identity of one file.

        Raises
        ------
        Ambiguous
            The path does not identify a person.
        """
        if reading.file in self.named:
            if is_counter(reading.name.participant):
                self._check_twins(reading)
            answer: Found = reading.name.participant, NAMES, {}
        else:
            answer = self._settled(reading) or self._of_folder(reading) or self._of_stem(reading)
        participant, layout, more = answer
        return Identity(reading.file, participant, reading.metadata() | more, layout)

    def check(self, identities: list[Identity]) -> None:
        """Compare the identities of all files.

        Raises
        ------
        Ambiguous
            Two people may have become one participant, or one person two.
        """
        if any(len(scopes) > 1 for scopes in self.scopes.values()):
            raise Ambiguous("a folder of the same name stands in several folders")
        group_of: dict[str, str] = {}
        spelling_of: dict[str, str] = {}
        for identity in identities:
            if group_of.setdefault(identity.participant, _GROUPS[identity.layout]) != _GROUPS[identity.layout]:
                raise Ambiguous("a file has the name of a folder, or of the person in another file's name")
            if spelling_of.setdefault(folded(identity.participant), identity.participant) != identity.participant:
                raise Ambiguous("two names differ in upper and lower case, or in the form of characters, only")

    def _settled(self, reading: PathReading) -> Found | None:
        """Return the identity by what identifies everywhere: barcodes, UK Biobank's names, folders of people."""
        barcodes = [match for text in (*_names(reading), reading.stem) for match in BARCODE.finditer(text)]
        if barcodes:
            if len({match["participant"].upper() for match in barcodes}) > 1:
                raise Ambiguous("a path holds two barcodes")
            return barcodes[-1]["participant"].upper(), BARCODES, {"slide": barcodes[-1]["slide"]}
        if reading.name.source == "ukb":
            return reading.name.participant, UKB_NAMES, {}
        people = reading.positions(Kind.PERSON)
        if people:
            return self._person(reading, people)
        slides = reading.positions(Kind.SLIDE)
        if slides and reading.positions(*_FOLDERS_OF_PEOPLE, start=self.common):
            raise Ambiguous("folders of slides stand in folders that may name people")
        return self._folder(reading, slides[-1]) if slides else None

    def _person(self, reading: PathReading, people: list[int]) -> Found:
        names = [folded(reading.folders[number][0]) for number in people]
        # Folders such as p10/p10000032 group people by the first digits.
        if not all(inner.startswith(outer) for outer, inner in pairwise(names)):
            raise Ambiguous("two folders of a path name people")
        digits = re.sub(r"\D", "", names[-1])
        in_name = re.sub(r"\D", "", reading.name.participant)
        is_word = reading.name.source == "person" and not re.match(r"p\d", reading.name.participant, re.IGNORECASE)
        if is_word and in_name.lstrip("0") != digits.lstrip("0"):
            raise Ambiguous("folder and file name are of two people")
        return self._folder(reading, people[-1])

    def _folder(self, reading: PathReading, position: int) -> Found:
        name = reading.folders[position][0]
        self.scopes[name].add(reading.scope(position))
        return name, FOLDERS, {}

    def _owner(self, reading: PathReading, start: int) -> int | None:
        """Return the position of the folder that may name a person; None if there is none, or more than one."""
        candidates = reading.positions(*_FOLDERS_OF_PEOPLE, start=start)
        kinds = [reading.folders[number][1] for number in candidates]
        # oslo/1001 is a person; 00001/oslo may be one, or a part of the data.
        if len(candidates) > 1 and not (kinds[-1] is Kind.ID and set(kinds[:-1]) == {Kind.WORD}):
            return None
        is_date = bool(candidates) and kinds[-1] is Kind.YEAR and len(reading.folders[candidates[-1]][0]) > 4
        return candidates[-1] if candidates and not is_date else None

    def _kind(self, reading: PathReading) -> Kind | None:
        """Return what the folder that tells a file apart stands for; CLASS also for training and test data."""
        owner = self._owner(reading, self.common)
        if owner is not None:
            return reading.folders[owner][1]
        nested = reading.positions(*_FOLDERS_OF_PEOPLE, start=self.common)
        return Kind.CLASS if reading.positions(Kind.CLASS, Kind.SPLIT) and not nested else None

    def _of_folder(self, reading: PathReading) -> Found | None:
        """Return the identity by the folder of a file whose name names nobody; None if the folder names nobody.

        Raises
        ------
        Ambiguous
            The folder may stand for a person, or for something else.
        """
        name, kind = reading.name, self._kind(reading)
        owner = self._owner(reading, self.common)
        if owner is None:  # a source folder of one person
            owner = self._owner(reading, 0)
        below = {folder for _, folder in reading.folders[owner + 1 :]} if owner is not None else set()
        numbered = kind in (Kind.ID, Kind.NUMBER, Kind.YEAR)
        names_nobody = name.source == "word" or (name.bare and not name.numbers)
        if owner is not None and (names_nobody or (numbered and below & {Kind.EYE, Kind.VISIT})):
            return self._folder(reading, owner)
        if names_nobody:
            raise Ambiguous("files named by an eye stand in no folder of a person, or below several")
        if owner is not None and kind is Kind.ID:
            if kind in self.repeated_kinds or kind not in self.crowded_kinds:
                return self._folder(reading, owner)
            raise Ambiguous("folders named by numbers hold several images, of one person or of many")
        if kind is Kind.NUMBER and owner is not None and self.images_in[reading.parent] > 1:
            number = reading.folders[owner][0]
            if number.isdecimal() and len(number) > 1 and kind not in self.repeated_kinds:
                raise Ambiguous("folders named by numbers hold several images, of one person or of many")
        return None

    def _of_stem(self, reading: PathReading) -> Found:
        """Return the identity by the file name, as a participant of its own.

        Raises
        ------
        Ambiguous
            The name stands in several folders, or names a person or an eye of which there are others.
        """
        if reading.name.participant and reading.name.source != "number":
            raise Ambiguous("the same person or number before an eye stands in several folders")
        if all_but_eye(reading) in self.pairs:
            raise Ambiguous("file names without a person's ID differ in the eye only")
        self._check_twins(reading)
        stem = unicodedata.normalize("NFC", reading.stem)
        if self._kind(reading) is Kind.CLASS:
            path = f"{reading.parent}/{stem}" if Kind.CLASS in self.repeated_kinds else stem
            return path, CLASSES, {}
        if stem_key(reading) in self.repeated:
            raise Ambiguous("files of the same name stand in several folders, which may be people or classes")
        return stem, OWN, {}

    def _check_twins(self, reading: PathReading) -> None:
        if self.twins[place(reading)] > 1:
            raise Ambiguous("two files of a folder differ in the suffix only")


def _common_folders(paths: list[list[str]]) -> int:
    """Return how many leading folders all files share."""
    least, most = min(paths, default=[]), max(paths, default=[])
    return next((number for number, name in enumerate(least) if most[number : number + 1] != [name]), len(least))


def _names(reading: PathReading) -> list[str]:
    return [name for name, _ in reading.folders]
