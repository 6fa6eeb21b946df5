"""The package as it is installed: public names, and what the wheel holds."""

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest

import mrmfast
from mrmfast.data.dataset import DataConfig
from mrmfast.errors import UserError
from tests.helpers.common import ROOT


def test_public_names():
    from mrmfast.data.dataset import open_dataset
    from mrmfast.models.export import load_encoder

    assert mrmfast.load_encoder is load_encoder
    assert mrmfast.open_dataset is open_dataset
    assert set(mrmfast.__all__) == {"__version__", "load_encoder", "open_dataset"}
    with pytest.raises(AttributeError, match="no attribute 'Loader'"):
        mrmfast.Loader  # noqa: B018


def test_a_dataset_opens_by_its_folder(dataset):
    opened = mrmfast.open_dataset(str(dataset), split="all", modalities=["pgs"])
    assert len(opened.selected) == 24
    assert [modality.name for modality in opened.store.modalities] == ["pgs"]
    with pytest.raises(UserError, match="did you mean split"):
        mrmfast.open_dataset(str(dataset), splits="all")
    with pytest.raises(TypeError, match="go with a folder or URL"):
        mrmfast.open_dataset(DataConfig(path=str(dataset)), split="all")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel of a copy of the sources, so that nothing lands in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("mrmfast", "preprocess", "configs", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    return zipfile.ZipFile(next((folder / "dist").glob("*.whl")))


def test_the_wheel_holds_every_file_that_the_code_reads(wheel):
    names = set(wheel.namelist())
    needed = {
        path.relative_to(ROOT).as_posix()
        for package in ("mrmfast", "preprocess")
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".c", ".cpp", ".h", ".j2", ".typed"}
    }
    assert {"mrmfast/py.typed", "mrmfast/cli/__init__.py", "preprocess/report/report.html.j2"} <= needed
    needed |= {f"mrmfast/_configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert needed - names == set()
    assert wheel.read("mrmfast/_configs/demo.yaml") == (ROOT / "configs" / "demo.yaml").read_bytes()


def test_the_wheel_holds_nothing_else(wheel):
    """Tests, benchmarks and the build's leftovers stay out."""
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert top == {"mrmfast", "preprocess", f"mrmfast-{mrmfast.__version__}.dist-info"}


def test_metadata(wheel):
    folder = f"mrmfast-{mrmfast.__version__}.dist-info"
    assert "mrmfast = mrmfast.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    text = wheel.read(f"{folder}/METADATA").decode()
    assert f"\nVersion: {mrmfast.__version__}\n" in text
    assert "\nClassifier: Typing :: Typed\n" in text
    assert "\nAuthor: " in text
    assert metadata.version("click").split(".") >= ["8", "5"]
