"""``dataset.json``: what a dataset folder holds, with sizes and checksums. Documented in ``docs/formats.md``."""

from __future__ import annotations

import hashlib
import json
import reprlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from mrmfast.atomic import write_aside
from mrmfast.errors import PARSE_ERRORS, UserError
from mrmfast.formats.manifest_schema import ShardFields, SplitFields, problem
from mrmfast.formats.splits import RELATIVES, relatives_text
from mrmfast.formats.splits import SplitRule as SplitRule  # re-exported

FORMAT = "mrmfast-dataset"
VERSION = 2
NAME = "dataset.json"
SPLITS = ("train", "test")
SHARD_FIELDS = tuple(ShardFields.__annotations__)
SPLIT_FIELDS = tuple(SplitFields.__annotations__)


@dataclass(frozen=True)
class Shard:
    """One tar of samples; paths are relative to the dataset folder."""

    path: str
    index: str
    bytes: int
    samples: int
    sha256: str


@dataclass
class Manifest:
    """The parsed ``dataset.json``.

    Attributes
    ----------
    shards : list of Shard
        In order; sample numbers run through them.
    image_size : int
        Side of the stored square images, pixels (0: no images yet).
    schema : dict
        Extension of a tar member -> what it holds.
    statistics : dict
        Counts and pixel statistics of the images.
    index_sha256 : str
        Digest of ``images/index.zarr`` (empty: no images yet).
    genetics : dict
        Modality -> kind, number of features, participants, digest of its folder (:mod:`mrmfast.formats.checksums`).
    splits : SplitRule
    pseudonyms : str
        Fingerprint of the key that replaced participants' ids (:mod:`mrmfast.formats.pseudonyms`); empty: none.
    files : dict, optional
        SHA-256 of the files that are neither shards nor Zarr: reports and records (:mod:`mrmfast.formats.records`).
        None in datasets of earlier versions.
    """

    shards: list[Shard] = field(default_factory=list)
    image_size: int = 0
    schema: dict[str, str] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    index_sha256: str = ""
    genetics: dict[str, dict[str, Any]] = field(default_factory=dict)
    splits: SplitRule = field(default_factory=SplitRule)
    pseudonyms: str = ""
    files: dict[str, str] | None = None

    @property
    def samples(self) -> int:
        """Number of images."""
        return sum(shard.samples for shard in self.shards)

    def to_json(self) -> str:
        """Serialise; key order is fixed, so equal manifests are equal bytes. The last field seals all the others."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "version": 2 if self.splits.relatives else 1,  # version 1 knows no relatives
            "images": {
                "image_size": self.image_size,
                "samples": self.samples,
                "index": "images/index.zarr",
                "index_sha256": self.index_sha256,
                "schema": self.schema,
                "statistics": self.statistics,
                "shards": [asdict(shard) for shard in self.shards],
            },
            "genetics": {"path": "genetics.zarr", "modalities": self.genetics},
            "splits": {"rule": "sha256(seed:participant)", **self.splits.fields()},
            "pseudonyms": self.pseudonyms,
        }
        if self.files is not None:
            document["files"] = dict(sorted(self.files.items()))
        document["sha256"] = _seal(document)
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Manifest:
        """Parse a manifest.

        Raises
        ------
        UserError
            Not JSON, another format, a newer version, a missing field, or changed since it was written; `where` names
            the file.
        """
        remedy = "copy the dataset again, or run its preprocessor again"
        try:
            document = json.loads(text)
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                raise UserError(f"{where}: not an mrmfast dataset (field 'format'); make one with python -m preprocess")
            version = document.get("version")
            if isinstance(version, int) and version > VERSION:
                raise UserError(
                    f"{where}: format version {reprlib.repr(version)} is newer than {VERSION}, "
                    "the newest that this mrmfast reads; upgrade mrmfast"
                )
            wrong = problem(document)
            # Last, because the error of a single field is more precise.
            sealed = document.pop("sha256", None) == _seal(document)
        except UserError:
            raise
        except PARSE_ERRORS as error:
            reason = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise UserError(f"{where}: damaged manifest ({reason}); {remedy}") from error
        if wrong is not None:
            raise UserError(f"{where}: damaged manifest ({wrong}); {remedy}")
        if not sealed:
            raise UserError(
                f"{where}: differs from its own SHA-256 (field 'sha256'); "
                "copy or upload the dataset again, or run its preprocessor again"
            )
        images = document["images"]
        return cls(
            shards=[Shard(**{name: shard[name] for name in SHARD_FIELDS}) for shard in images["shards"]],
            image_size=images["image_size"],
            schema=images["schema"],
            statistics=images["statistics"],
            index_sha256=images["index_sha256"],
            genetics=document["genetics"]["modalities"],
            splits=SplitRule(**{name: document["splits"][name] for name in SPLIT_FIELDS if name in document["splits"]}),
            pseudonyms=document["pseudonyms"],
            files=document.get("files"),
        )


def _seal(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, indent=1).encode()).hexdigest()


def read_manifest(dataset: str | Path) -> Manifest:
    """Read the manifest of a local dataset folder, with its related participants; an empty one if there is none yet.

    Raises
    ------
    UserError
        :meth:`Manifest.from_json`; the related participants are not those that the manifest names.
    """
    path, relatives = Path(dataset) / NAME, Path(dataset) / RELATIVES
    if not path.exists():
        return Manifest()
    manifest = Manifest.from_json(path.read_bytes(), str(path))
    if manifest.splits.relatives and relatives.exists():
        manifest.splits = manifest.splits.with_relatives(relatives.read_bytes(), str(relatives))
    return manifest


class updating:  # noqa: N801 - reads as a verb where it is used
    """Context manager: read the manifest under a lock, let the block change it, write it aside and rename.

    Two preprocessors may finish at the same moment; the lock makes them take turns.
    """

    def __init__(self, dataset: str | Path) -> None:
        self.dataset = Path(dataset)
        self.dataset.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.dataset / ".dataset.lock")

    def __enter__(self) -> Manifest:
        self._lock.acquire()
        try:
            self._manifest = read_manifest(self.dataset)
        except BaseException:
            self._lock.release()
            raise
        return self._manifest

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                with write_aside(self.dataset / NAME) as file:
                    file.write(self._manifest.to_json())
        finally:
            self._lock.release()


def claim_splits(dataset: str | Path, rule: SplitRule) -> SplitRule:
    """Record the split rule of a new dataset, or check that `rule` is the one already recorded.

    Raises
    ------
    UserError
        The dataset was begun with another rule: statistics fitted on two training sets must not mix.
    """
    known = (Path(dataset) / NAME).exists()
    with updating(dataset) as manifest:
        if known and manifest.splits != rule:
            raise UserError(
                f"{dataset}: was begun with split seed {manifest.splits.seed}, test fraction "
                f"{manifest.splits.test_fraction} and {_relatives(manifest.splits)}, not {rule.seed}, "
                f"{rule.test_fraction} and {_relatives(rule)}; use the same --split-seed, --test-fraction and "
                "--kinship, or another --out"
            )
        if rule.relatives:
            with write_aside(Path(dataset) / RELATIVES, "wb") as file:
                file.write(relatives_text(rule.families()))
        manifest.splits = rule
    return rule


def _relatives(rule: SplitRule) -> str:
    return f"kinship {rule.relatives[:8]}" if rule.relatives else "no kinship"
