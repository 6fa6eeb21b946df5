"""What the documentation names exists: links, anchors, files, functions, examples."""

import re
import subprocess
import types
from functools import cache

import cv2
import numpy as np
import pytest
import torch

from mrmfast.batch import LabelSpec
from mrmfast.data.genetics.store import GenomeStore
from mrmfast.models.image_encoder import ImageEncoder
from preprocess.images.outcome import Excluded
from tests.helpers import contract
from tests.helpers.common import ROOT

# History names files as they were.
HISTORY = ("docs/log.md", "CHANGELOG.md", "benchmarks/results/")
TEXT = (".py", ".c", ".cpp", ".h", ".yaml", ".toml", ".sh", ".md", ".j2")
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


@cache
def tracked():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return frozenset(name for name in names if (ROOT / name).exists())


@cache
def folders():
    return frozenset(name[: match.start()] for name in tracked() for match in re.finditer("/", name))


PAGES = sorted(name for name in tracked() if name.endswith(".md"))


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def anchors(page):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(page)), re.MULTILINE)
    texts = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings)
    return frozenset(re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts)


def is_there(path):
    return path.rstrip("/") in tracked() | folders()


def broken_links(page, text):
    """Links of a page that lead nowhere."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        resolved = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        name = str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else ""
        if not is_there(name) or (anchor and anchor not in anchors(name)):
            broken.append(target)
    return broken


def broken_citations(text):
    """Pages of ``docs/`` that a text cites, and that do not exist or lack the anchor."""
    broken = []
    for page, anchor in re.findall(r"\b(docs/[\w/.-]+\.md)(?:#([\w-]+))?", text):
        template = re.search(r"[A-Z]{3}", page + anchor)
        if not template and (page not in tracked() or (anchor and anchor not in anchors(page))):
            broken.append(f"{page}#{anchor}")
    return broken


def defines(name, qualified):
    """Whether a Python file defines a class, function or method."""
    return all(re.search(rf"^ *(class|def) {part}\b", read(name), re.MULTILINE) for part in qualified.split("."))


def broken_paths(text):
    """Paths in backticks that are no file or folder of the repository, and ``file:name`` whose name is not defined."""
    broken = []
    tops = "|".join(sorted({name.partition("/")[0] for name in folders()} | {r"\.ci"}))
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
        match = re.fullmatch(rf"((?:{tops})/[\w./-]*)(?::([\w.]+))?", span)
        if match is None or re.search(r"\b[A-Z]{3,}\b|NAME", match[1]):
            continue
        path, name = match.groups()
        if not is_there(path) or (name and not defines(path, name)):
            broken.append(span)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken_links(page, read(page)) == []


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith(HISTORY)])
def test_named_files_and_functions_exist(page):
    assert broken_paths(read(page)) == []


def test_cited_pages_exist():
    cited = {name: broken_citations(read(name)) for name in sorted(tracked()) if name.endswith(TEXT)}
    cited.pop("tests/test_docs.py", None)
    assert {name: broken for name, broken in cited.items() if broken} == {}


def test_nothing_outside_the_repository_is_cited():
    outside = re.compile(r"method page|genetics notes|design page|\btrap \d", re.IGNORECASE)
    names = sorted(name for name in tracked() - {"tests/test_docs.py"} if name.endswith(TEXT))
    assert [name for name in names if not name.startswith(HISTORY) and outside.search(read(name))] == []


def test_what_is_wrong_is_found():
    """Each check above fails where it should."""
    page = "docs/glossary.md"
    assert broken_links(page, "[a](nowhere.md) [b](gpu.md) [c](gpu.md#nothing) [d](methods/mrm.md#symbols)") == [
        "nowhere.md",
        "gpu.md#nothing",
    ]
    assert broken_links(page, "[a](../../outside.md) [b](https://example.org) [c](#no-such-heading)") == [
        "../../outside.md",
        "#no-such-heading",
    ]
    assert broken_citations("see docs/methods/mrm.md#symbols, docs/methods/mrm.md#none, docs/none.md") == [
        "docs/methods/mrm.md#none",
        "docs/none.md#",
    ]
    spans = (
        "`mrmfast/batch.py:Batch.to` `mrmfast/batch.py:Nothing` `mrmfast/none.py` `docs/methods/NAME.md` `mrmfast/ops`"
    )
    assert broken_paths(spans) == ["mrmfast/batch.py:Nothing", "mrmfast/none.py"]


def example(page, number=0):
    """Run a Python example of a page; return its names."""
    blocks = re.findall(r"^```python\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)
    module = types.ModuleType("example")
    exec(compile(blocks[number], page, "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(
    "check",
    [contract.check_loss, contract.check_gradients, contract.check_same_info_same_loss, contract.check_bf16],
    ids=lambda check: check.__name__,
)
def test_the_example_objective_keeps_the_contract(check):
    check(example("docs/extend/objective.md").Colour)


def test_the_example_task_learns_from_labels():
    page = example("docs/extend/task.md")
    labels = LabelSpec("class", ("healthy", "ill"))
    task = page.Classify(page.ClassifyConfig(), ImageEncoder("vit_tiny_patch16_224", 32, 1), labels)
    views = (torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8),)
    target = torch.tensor([0, 1, 1, 0])
    loss, parts = task(views, (), torch.empty(4, 0, dtype=torch.bool), target, 0, 0, 1)
    loss.backward()
    assert all(parameter.grad is not None for parameter in task.parameters())
    assert task.metrics(task.predict(views[0]), target)["accuracy"] <= 1
    assert parts["cross_entropy"] == loss


def test_the_example_image_source_crops_and_excludes(tmp_path):
    page = example("docs/extend/image-source.md")
    path = tmp_path / "17_chest.png"
    pixels = np.zeros((60, 100, 3), dtype=np.uint8)
    pixels[:, 20:80] = 200  # the centred square
    cv2.imwrite(str(path), pixels)
    (finished,) = page.square(path, None, size=30).images
    assert finished.pixels.shape == (30, 30, 3)
    assert (finished.pixels == 200).all()
    with pytest.raises(Excluded, match="too small"):
        page.square(path, None, size=61)


def test_the_example_modality_is_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example("docs/extend/modality.md")
    store = GenomeStore.open("DATASET", ["blood"], None, str(tmp_path / "cache"))
    assert store.groups() == [("blood", "blood", 2)]
    rows = store.locate(np.array(["P3", "P9"]))
    assert rows[1, 0] == -1
    (values,) = store.gather(rows[:1])
    np.testing.assert_allclose(np.asarray(values), [[-0.4, 2.0]])
