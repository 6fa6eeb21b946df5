"""``python -m preprocess check DATASET``: compare every byte of a dataset folder with its checksums.

``dataset.json`` contains a checksum of its own content, the SHA-256 of every tar, and the SHA-256 of the
``checksums.json`` of every Zarr folder. Each ``checksums.json`` contains the SHA-256 of every file of its folder. A
DALI index is compared with its tar. Reports and the record of the images are listed in ``dataset.json`` with their
SHA-256. A flipped byte in any of these files is therefore detected, and so is a missing or an unexpected file.

The command also looks up the participants of the images in the genetics. It prints every problem with the file's name.
The exit status is 0 without problems, 1 with problems, and 2 if there is no dataset to check.
"""

from __future__ import annotations

import argparse
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import zarr
from tqdm import tqdm

from mrmfast.errors import PARSE_ERRORS, UserError
from mrmfast.formats.checksums import damage, file_sha256
from mrmfast.formats.genetics import ROOT_METADATA, STORE, packed_width
from mrmfast.formats.image_shards import index_text, tar_samples
from mrmfast.formats.manifest import NAME, Manifest, Shard
from mrmfast.formats.pseudonyms import SHAPE
from mrmfast.formats.records import REPORTS
from mrmfast.formats.sample_table import INDEX, check_table, read_sample_table
from mrmfast.formats.splits import RELATIVES
from preprocess.files import other_files, unexpected_files

REMEDY = "copy the dataset again, or run its preprocessor again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``check``."""
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="dataset folder")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return 0 if all checksums match, 1 if a file is damaged.

    Raises
    ------
    UserError
        The folder is not a dataset.
    """
    dataset: Path = arguments.dataset
    path = dataset / NAME
    if not path.is_file():
        raise UserError(f"{path}: does not exist; give a dataset folder written by python -m preprocess")
    notes: list[str] = []
    remedy = f"; {REMEDY}"
    try:
        manifest = _manifest(path)
    except UserError as error:
        problems, remedy = [str(error)], ""
    else:
        total = sum(file.stat().st_size for file in dataset.rglob("*") if file.is_file())
        with tqdm(total=total, desc="check", unit="B", unit_scale=True, disable=None) as bar:
            problems = list(_damage(dataset, manifest, bar.update))
        notes = other_files(dataset, manifest)
        if not problems:
            problems, joins = _joins(dataset, manifest)
            notes += joins
    for problem in problems:
        print(f"damaged: {problem}{remedy}")
    for note in notes:
        print(f"check: {note}")
    count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    print(f"check: {dataset}: {count if problems else 'OK: all checksums match'}")
    return 1 if problems else 0


def _manifest(path: Path) -> Manifest:
    text = path.read_bytes()
    manifest = Manifest.from_json(text, str(path))
    # The manifest's checksum covers its fields; this comparison covers every byte.
    if manifest.to_json().encode() != text:
        raise UserError(f"{path}: was changed; {REMEDY}")
    return manifest


def _damage(dataset: Path, manifest: Manifest, progress: Callable[[int], object]) -> Iterator[str]:
    for shard in manifest.shards:
        yield from _shard_damage(dataset, shard)
        progress(shard.bytes)
    relatives = dataset / RELATIVES
    if manifest.splits.relatives and (not relatives.is_file() or file_sha256(relatives) != manifest.splits.relatives):
        yield f"{relatives}: is missing, or its SHA-256 differs from {NAME}"
    if manifest.shards:
        yield from damage(dataset / INDEX, manifest.index_sha256, progress)
    if manifest.genetics:
        root = dataset / STORE / "zarr.json"
        if not root.is_file() or root.read_bytes() != ROOT_METADATA.encode():
            yield f"{root}: is missing or changed"
    for name, entry in manifest.genetics.items():
        yield from damage(dataset / STORE / name, entry["sha256"], progress)
    yield from _record_damage(dataset, manifest, progress)
    for name in unexpected_files(dataset, manifest):
        yield f"{dataset / name}: is not in {NAME}"


def _record_damage(dataset: Path, manifest: Manifest, progress: Callable[[int], object]) -> Iterator[str]:
    """Compare reports and records. A dataset that is passed on without its private reports is complete."""
    reports = (dataset / REPORTS).exists()
    for name, digest in (manifest.files or {}).items():
        path = dataset / name
        if not path.is_file():
            if reports or not name.startswith(f"{REPORTS}/"):
                yield f"{path}: is missing"
            continue
        if file_sha256(path) != digest:
            yield f"{path}: SHA-256 differs from {NAME}"
        progress(path.stat().st_size)


def _shard_damage(dataset: Path, shard: Shard) -> Iterator[str]:
    path, index = dataset / shard.path, dataset / shard.index
    if not path.is_file():
        yield f"{path}: is missing"
        return
    if path.stat().st_size != shard.bytes or file_sha256(path) != shard.sha256:
        yield f"{path}: size or SHA-256 differs from {NAME}"
        return
    if not index.is_file():
        yield f"{index}: is missing"
        return
    try:
        described = index.read_bytes() == _index_of(path)
    except (tarfile.TarError, *PARSE_ERRORS) as error:  # written so by another tool, and never a readable tar
        yield f"{path}: not a readable tar ({type(error).__name__})"
    else:
        if not described:
            yield f"{index}: does not describe its tar"


def _index_of(path: Path) -> bytes:
    with tarfile.open(path) as tar:
        return index_text(tar_samples(tar)).encode()


def _joins(dataset: Path, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Compare counts and ids across the parts of an undamaged dataset; return problems and notes."""
    try:
        return _compare_parts(dataset, manifest)
    except UserError as error:
        return [str(error)], []
    except PARSE_ERRORS as error:  # digests match, so it was written so, by another tool
        return [f"{dataset}: its parts cannot be read ({type(error).__name__})"], []


def _compare_parts(dataset: Path, manifest: Manifest) -> tuple[list[str], list[str]]:
    problems: list[str] = []
    notes = ["participant IDs are pseudonyms"] if manifest.pseudonyms else []
    images: set[str] = set()
    if manifest.shards:
        table = read_sample_table(str(dataset))
        images = set(table.participant.tolist())
        problems += _id_damage(manifest, dataset / INDEX, images)
        check_table(table, manifest.shards, str(dataset))
        problems += _sample_damage(dataset, manifest, table.shard, table.offset, table.size)
        notes.append(f"{len(table)} images of {len(images)} participants")
    for name, entry in manifest.genetics.items():
        group = zarr.open_group(dataset / STORE / name, mode="r")
        shape = (entry["participants"], packed_width(entry["kind"], entry["n_features"]))
        ids = np.asarray(group["participants"][:]).tolist()  # type: ignore[index]  # an array, not a group
        if group["rows"].shape != shape or len(ids) != shape[0]:  # type: ignore[union-attr]
            problems.append(f"{dataset / STORE / name}: has another size than in {NAME}")
        problems += _id_damage(manifest, dataset / STORE / name, ids)
        joined = f", for {len(images.intersection(ids))} of the {len(images)} with images" if images else ""
        notes.append(f"{name}: {len(ids)} participants x {entry['n_features']} features{joined}")
    return problems, notes


def _id_damage(manifest: Manifest, path: Path, ids: Iterable[str]) -> list[str]:
    """Return a problem if the manifest names a key and an id is not a pseudonym."""
    plain = sum(SHAPE.fullmatch(identifier) is None for identifier in ids) if manifest.pseudonyms else 0
    return [f"{path}: {plain} IDs are not pseudonyms, but {NAME} requires pseudonyms"] if plain else []


def _sample_damage(
    dataset: Path, manifest: Manifest, shard: np.ndarray, offset: np.ndarray, size: np.ndarray
) -> list[str]:
    """Return a problem for every tar whose images are not where the sample table says."""
    problems = []
    for number, entry in enumerate(manifest.shards):
        with tarfile.open(dataset / entry.path) as tar:
            in_tar = [(m.offset_data, m.size) for m in tar if m.name.lower().endswith((".jpg", ".jpeg"))]
        rows = shard == number
        # Images of another tool's tar that cannot be decoded are skipped in the table.
        if not set(zip(offset[rows].tolist(), size[rows].tolist(), strict=True)) <= set(in_tar):
            problems.append(f"{dataset / INDEX}: does not point at the images of {entry.path}")
    return problems
