"""What is damaged, and what a reader then gets: a dataset, the node's cache, checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np

from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.errors import UserError
from mrmfast.formats.records import RECORD, recording
from mrmfast.training import checkpoint

Read = Callable[[], str]


def dataset_content(path: str, cache: Path) -> str:
    """Return a digest of all that training reads of a dataset: keys, JPEG bytes, splits, genetics.

    Raises
    ------
    UserError
        The dataset is refused.
    """
    dataset = open_dataset(DataConfig(path=path, cache=str(cache), split="all", unmatched="keep"))
    digest = hashlib.sha256()
    table, source = dataset.table, dataset.source
    with source:
        for number, shard in enumerate(dataset.manifest.shards):
            raw = np.fromfile(source.local(shard), np.uint8)
            for row in np.flatnonzero(table.shard == number):
                digest.update(raw[table.offset[row] : table.offset[row] + table.size[row]].tobytes())
            source.release(shard)
    digest.update(repr((table.key.tolist(), table.participant.tolist(), dataset.manifest.splits)).encode())
    digest.update(repr(dataset.manifest.image_size).encode())
    assert dataset.store is not None
    digest.update(repr(dataset.store.groups()).encode())
    digest.update(dataset.store.fill().tobytes())
    for part in dataset.store.gather(dataset.genome_rows):
        digest.update(part.tobytes())
    digest.update(dataset.genome_rows.tobytes())
    return digest.hexdigest()


def checkpoint_content(folder: Path) -> str:
    """Return a digest of the files that a resumed run loads, and the step that it resumes from.

    Raises
    ------
    UserError
        All checkpoints are refused.
    """
    chosen, warnings = checkpoint.choose(folder)
    for warning in warnings:
        print(warning)
    assert chosen is not None
    digest = hashlib.sha256()
    for path in sorted(chosen.iterdir()):
        if path.suffix == ".pt" or path.name == checkpoint.STATE:
            digest.update(path.name.encode() + path.read_bytes())
    return f"{chosen.name} {digest.hexdigest()}"


def outcome(read: Read, right: set[str]) -> tuple[str, str]:
    """Read what may be damaged.

    Parameters
    ----------
    read : callable
    right : set of str
        What an undamaged subject gives.

    Returns
    -------
    str
        ``refused``, ``healed`` (right, with a warning), ``no effect``, ``silent`` (wrong, without an error) or
        ``traceback``.
    str
        What was said.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            content = read()
    except UserError as error:
        return "refused", str(error)
    except Exception as error:
        return "traceback", repr(error)
    text = "\n".join(line for line in output.getvalue().splitlines() if "genome store" not in line).strip()
    if content not in right:
        return "silent", text
    return ("healed" if text else "no effect"), text


def add_reports(dataset: Path) -> None:
    """Write a report and a record, as the commands do."""
    with recording(dataset):
        (dataset / "reports").mkdir()
        (dataset / "reports" / "fundus.json").write_text(json.dumps({"command": "fundus", "written": 24}))
        (dataset / "reports" / "snps.tsv.gz").write_bytes(bytes(range(256)) * 8)
        (dataset / RECORD).write_text(json.dumps({"command": "fundus", "finished": "x"}))


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder, without locks of preprocessors."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".dataset.lock")


def copy(folder: Path, to: Path) -> Path:
    """Replace a folder with a copy that keeps times, as an undamaged one has."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to))


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP; yields its URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
