"""Every line of the data side that only a GPU reaches is executed here, without one.

Lines are counted by ``coverage``: all of ``dali.py`` and ``prefetch.py``, and in the other files of ``mrmfast/data``
the branches of each ``if`` that asks for a GPU. A conditional expression hides a branch from such a count, so there is
none.
"""

import ast
from pathlib import Path

import coverage
import numpy as np
import pytest
import simplejpeg
import torch
from nvidia.dali import Pipeline

import mrmfast.data
from mrmfast.batch import Batch
from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.data.images import backend as image_backends
from mrmfast.data.images.augment import warp_matrices
from mrmfast.data.images.dali import DALIImages
from mrmfast.data.loader import Loader
from mrmfast.data.prefetch import DevicePrefetcher
from mrmfast.meters import Meters
from tests.helpers.without_gpu import python_half_of_build, record_streams

ROOM = Path(mrmfast.data.__file__).parent
WHOLE = {"dali.py", "prefetch.py"}
ARGUED: dict[str, list[str]] = {}  # file -> texts of lines that need not be executed, each with its reason beside it
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
SIDE = 32


def asks_for_a_gpu(node):
    text = ast.unparse(node)
    return "gpu" in text.lower() or "cuda" in text.lower()


def lines_of(path):
    """Numbers of lines that must be executed, and conditional expressions that no count of lines can see."""
    source = path.read_text()
    wanted, hidden = set(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.IfExp) and asks_for_a_gpu(node.test):
            hidden.append(f"{path.name}:{node.lineno}")
        elif isinstance(node, ast.If) and asks_for_a_gpu(node.test):
            wanted |= {inner.lineno for part in (*node.body, *node.orelse) for inner in ast.walk(part)
                       if isinstance(inner, ast.stmt)}  # fmt: skip
    return (None if path.name in WHOLE else wanted), hidden


def jpegs(count):
    generator = np.random.default_rng(0)
    small = generator.integers(0, 255, (count, 4, 4, 3), dtype=np.uint8).repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    return [np.frombuffer(simplejpeg.encode_jpeg(np.ascontiguousarray(one)), np.uint8) for one in small]


def matrices(count):
    return warp_matrices(np.linspace(-20, 20, count), np.arange(count) % 2 == 1, SIDE)


def source_of(*batches):
    """A source of batches of JPEGs that ends in an error."""
    left = iter(batches)

    def source():
        batch = next(left, None)
        if batch is None:
            raise ConnectionError("the link is down")
        return batch, matrices(len(batch)), ["k"] * len(batch)

    return source


def run_dali(device, **options):
    """A few batches: sound, one that DALI cannot decode, one that is empty; then the error of the source."""
    good = jpegs(4)
    garbage = good[0].copy()
    garbage[2:-2] = 0x55
    bomb = good[0].copy()
    at = bytes(bomb).index(b"\xff\xc0") + 5
    bomb[at : at + 4] = 0xFF  # 65,535 x 65,535 pixels
    # As in training, an empty batch comes last.
    source = source_of(good, [good[0], garbage, bomb, good[1][:-9]], [])
    images = DALIImages(
        source, batch=4, stored_size=SIDE, device=device, threads=1, depth=4, meters=Meters(), **options
    )  # fmt: skip
    # The source has ended by the time that DALI fails on the second, and DALI has to begin anew all the same.
    got = [images.run() for _ in range(3)]
    with pytest.raises(ConnectionError, match="the link is down"):
        images.run()
    images.close()
    return got


def exercise_cpu_operators():
    pixels = run_dali(CPU, size=SIDE)
    floats = run_dali(CPU, size=SIDE // 2, pixels="float32")
    for got in (pixels, floats):
        assert [bad.tolist() for _, bad in got] == [[False] * 4, [False, True, True, True], []]
    assert [tuple(image.shape) for image, _ in floats] == [(4, 3, 16, 16), (4, 3, 16, 16), (0, 3, 16, 16)]


def exercise_gpu_graph(monkeypatch):
    """The graph of a GPU is built but for its driver; what DALI gives back is a tensor of here."""

    class Output:
        @staticmethod
        def as_tensor():
            return torch.full((4, SIDE, SIDE, 3), 7, dtype=torch.uint8)

    def run(pipeline):
        batch, at = images._feed()
        assert len(batch) == 4 and at.shape == (4, 2, 3)
        return (Output(),)

    def broken(pipeline):
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "build", python_half_of_build)
        patch.setattr(Pipeline, "run", run)
        images = image_backends.open_images(
            "auto", source_of(jpegs(4)), batch=4, stored_size=SIDE, size=SIDE, device=GPU, threads=1, depth=1,
            meters=Meters(),
        )  # fmt: skip
        assert isinstance(images, DALIImages)
        picture, bad = images.run()
        assert picture.shape == (4, 3, SIDE, SIDE) and (picture == 7).all() and not bad.any()
        patch.setattr(Pipeline, "run", broken)
        with pytest.raises(RuntimeError, match="broken"):
            images.run()  # none of the pictures is at fault
        images.close()


def exercise_pinned_memory(monkeypatch, dataset):
    """The CPU path and the joined genetics of a GPU lie in pinned memory; which is ordinary here."""
    pinned, empty = [], torch.empty

    def allocate(*shape, pin_memory=False, **options):
        pinned.append(pin_memory)
        return empty(*shape, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", allocate)
        patch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append("genetics") or self)
        config = DataConfig(path=str(dataset), image_size=SIDE, threads=1, backend="cpu")
        options = {"seed": 0, "batch": 6, "micro_batch": 6, "rank": 0, "world": 1}
        batches = Loader(open_dataset(config), config, device=GPU, **options).batches(0)
        got = next(batches)
        batches.close()
        expected = next(Loader(open_dataset(config), config, device=CPU, **options).batches(0))
    assert True in pinned and pinned.count("genetics") >= 4  # three modalities and who has which
    assert got.keys == expected.keys and torch.equal(got.image_BCHW, expected.image_BCHW)
    assert all(torch.equal(a, b) for a, b in zip(got.tensors(), expected.tensors(), strict=True))


def exercise_prefetcher():
    def loader():
        for number in (1, 2):
            yield Batch(torch.zeros(1, 3, 2, 2), (), torch.zeros(1, 0), ("a",), (0,), number)

    for device in (CPU, GPU):
        batches = DevicePrefetcher(loader(), device)
        ends = []
        for batch in batches:
            ends.append(batch.end)
            batches.stage()
        assert ends == [1, 2]
        batches.close()


def test_every_line_for_a_gpu_is_executed(monkeypatch, dataset):
    record_streams(monkeypatch)
    counter = coverage.Coverage(data_file=None, include=[f"{ROOM}/*"])
    with counter.collect():
        exercise_cpu_operators()
        exercise_gpu_graph(monkeypatch)
        exercise_pinned_memory(monkeypatch, dataset)
        exercise_prefetcher()
    missed, hidden = [], []
    for path in sorted(ROOM.glob("**/*.py")):
        wanted, conditional = lines_of(path)
        hidden += conditional
        if wanted == set():
            continue
        _, _, _, not_executed, _ = counter.analysis2(str(path))
        text = path.read_text().splitlines()
        for number in not_executed:
            # What an import executes (imports, signatures) has been, before this test began to count.
            if (wanted is None and inside_a_function(path, number)) or (wanted is not None and number in wanted):
                line = text[number - 1].strip()
                if line not in ARGUED.get(path.name, []):
                    missed.append(f"{path.name}:{number}: {line}")
    assert not hidden, "conditional expressions on the GPU: write them as statements"
    assert not missed


def inside_a_function(path, number):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return any(
        node.body[0].lineno <= number <= node.end_lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, functions)
    )
