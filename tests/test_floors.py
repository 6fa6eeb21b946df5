"""Imports only go down, without circles: the contracts hold, and a wrong import breaks its contract."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.helpers.common import ROOT

# Contract -> a file and an import that it must refuse.
WRONG = {
    "floors": ("mrmfast/formats/manifest.py", "import mrmfast.data.dataset"),
    "objectives, models and ops never see data": ("mrmfast/models/decoders.py", "import mrmfast.formats.manifest"),
    "preprocess knows formats and storage, not training": ("preprocess/check.py", "import mrmfast.data.dataset"),
    "the package never imports its tools": ("mrmfast/meters.py", "import benchmarks.harness"),
    "no circles inside a package": ("mrmfast/formats/manifest.py", "import mrmfast.formats.pseudonyms"),
    "layers of storage": ("mrmfast/storage/retry.py", "import mrmfast.storage.zarr_store"),
    "layers of preprocess": ("preprocess/parallel/calls.py", "import preprocess.images.outcome"),
    "layers of preprocess.images": ("preprocess/images/outcome.py", "import preprocess.images.index"),
}


def contracts() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages."""
    folder = tmp_path_factory.mktemp("floors")
    for name in ("mrmfast", "preprocess", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(tree: Path) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"}
    done = subprocess.run(
        ["lint-imports", "--no-cache"], cwd=tree, env=environment, capture_output=True, text=True, timeout=200
    )
    return done.returncode, done.stdout + done.stderr


def test_the_contracts_hold(tree: Path) -> None:
    status, output = lint(tree)
    assert status == 0, output


def test_each_contract_has_a_wrong_import() -> None:
    assert sorted(contracts()) == sorted(WRONG)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_import_breaks_its_contract(tree: Path, name: str) -> None:
    file, line = WRONG[name]
    path = tree / file
    text = path.read_text()
    path.write_text(f"{text}\n{line}\n")
    try:
        status, output = lint(tree)
    finally:
        path.write_text(text)
    assert status != 0
    assert f"{name} BROKEN" in output, output
