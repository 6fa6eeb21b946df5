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
from mrmfast.batch import Batch, Photometric, ViewSpec
from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.data.images import backend as image_backends
from mrmfast.data.images.augment import warp_matrices
from mrmfast.data.images.backend import DecodeRequest
from mrmfast.data.images.dali import DALIImages
from mrmfast.data.loader import Loader
from mrmfast.data.prefetch import DevicePrefetcher
from mrmfast.meters import Meters
from tests.helpers.images import encode, spec_for
from tests.helpers.without_gpu import python_half_of_build, record_streams

ROOM = Path(mrmfast.data.__file__).parent
WHOLE = {"dali.py", "prefetch.py"}
ARGUED: dict[str, list[str]] = {}  # file -> texts of lines that need not be executed, each with its reason beside it
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
SIDE = 32
SIDES = (SIDE, SIDE // 2, 12)
VIEWS = (ViewSpec(SIDE), ViewSpec(SIDE // 2, crop=(0.5, 1.0)), ViewSpec(12))  # as stored, reduced by crop, reduced
MASK = encode(np.ones((SIDE, SIDE), np.uint8), ".png")


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
        masks = ([MASK if number % 2 else None for number in range(len(batch))],)
        return DecodeRequest(batch, (matrices(len(batch)),) * 3, masks)

    return source


def run_dali(device, **options):
    """A few batches: sound, one with files that DALI cannot decode, one that is empty; then the error of the source."""
    good = jpegs(4)
    no_tables = good[0].copy()  # a sound header, and nothing that any decoder can use
    no_tables[bytes(no_tables).index(b"\xff\xdb") + 1] = 0xE5
    bomb = good[0].copy()
    at = bytes(bomb).index(b"\xff\xc0") + 5
    bomb[at : at + 4] = 0xFF  # 65,535 x 65,535 pixels
    # As in training, an empty batch comes last.
    source = source_of(good, [good[0], no_tables, bomb, good[1][:-9]], [])
    spec = spec_for(device=device, views=VIEWS, masks=(1,), stored=SIDE, threads=1, depth=4, **options)
    images = DALIImages(source, spec, Meters())
    # The source has ended by the time that DALI fails on the second, and DALI has to begin anew all the same.
    got = [images.run() for _ in range(3)]
    with pytest.raises(ConnectionError, match="the link is down"):
        images.run()
    images.close()
    return got


def exercise_cpu_operators():
    pixels, floats = run_dali(CPU), run_dali(CPU, pixels="float32")
    for got in (pixels, floats):
        assert [decoded.bad.tolist() for decoded in got] == [[False] * 4, [False, True, True, True], []]
        for view, side in enumerate(SIDES):
            assert [tuple(decoded.views[view].shape) for decoded in got] == [(n, 3, side, side) for n in (4, 4, 0)]
        assert [tuple(decoded.mask.shape) for decoded in got] == [(n, 1, SIDE, SIDE) for n in (4, 4, 0)]


def exercise_gpu_graph(monkeypatch):
    """The graph of a GPU is built but for its driver; what DALI gives back is a tensor of here."""

    class Output:
        def __init__(self, *shape):
            self.shape = shape

        def as_tensor(self):
            return torch.full(self.shape, 7, dtype=torch.uint8)

    def run(pipeline):
        batch, *at, sides, masks, mask_at = images._feed()
        assert len(batch) == len(masks) == 4 and sides.shape == (4,)
        assert all(matrix.shape == (4, 2, 3) for matrix in (*at, mask_at))
        return *(Output(4, side, side, 3) for side in SIDES), Output(4, SIDE, SIDE, 1)

    def broken(pipeline):
        images._feed()
        raise RuntimeError("broken")

    good = jpegs(4)
    scan = bytes(good[2]).index(b"\xff\xda") + 14
    half = np.concatenate([good[2][: (scan + len(good[2])) // 2], good[2][-2:]])  # libjpeg decodes it with a warning

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "build", python_half_of_build)
        patch.setattr(Pipeline, "run", run)
        spec = spec_for(device=GPU, views=VIEWS, masks=(1,), stored=SIDE, threads=1, depth=1)
        images = image_backends.open_images("auto", source_of(good, [*good[:3], half]), spec, Meters())
        assert isinstance(images, DALIImages)
        decoded = images.run()
        assert [tuple(view.shape) for view in decoded.views] == [(4, 3, side, side) for side in SIDES]
        assert all((view == 7).all() for view in decoded.views) and not decoded.bad.any()
        assert decoded.mask.shape == (4, 1, SIDE, SIDE) and (decoded.mask == 7).all()
        patch.setattr(Pipeline, "run", broken)
        with pytest.raises(RuntimeError, match="broken"):
            images.run()  # none of the images is at fault, not even what libjpeg decodes of the damaged one
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
        views = (ViewSpec(photometric=Photometric(blur=0.5)), ViewSpec())
        options = {"seed": 0, "batch": 6, "micro_batch": 6, "rank": 0, "world": 1, "views": views}
        batches = Loader(open_dataset(config), config, device=GPU, **options).batches(0)
        got = next(batches)
        batches.close()
        expected = next(Loader(open_dataset(config), config, device=CPU, **options).batches(0))
    assert True in pinned and pinned.count("genetics") >= 4  # three modalities and who has which
    assert got.keys == expected.keys and torch.equal(got.views[0], expected.views[0])
    assert all(torch.equal(a, b) for a, b in zip(got.tensors(), expected.tensors(), strict=True))


def exercise_prefetcher():
    def loader():
        for number in (1, 2):
            yield Batch((torch.zeros(1, 3, 2, 2),), (None,), (), torch.zeros(1, 0), None, ("a",), (0,), number)

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
