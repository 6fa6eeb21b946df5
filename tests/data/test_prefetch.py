"""Batches copied ahead: same batches, same positions, errors where they belong; streams are recorded, not real."""

import pytest
import torch

from mrmfast.batch import Batch
from mrmfast.data.prefetch import DevicePrefetcher
from mrmfast.errors import UserError
from tests.helpers.without_gpu import record_streams

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def batch(number):
    image = torch.full((2, 3, 4, 4), number, dtype=torch.uint8)
    return Batch((image,), (None,), (torch.zeros(2, 1),), torch.ones(2, 1), None, ("a", "b"), (0, 0), number)


def loader(count, pulled, error=None):
    for number in range(1, count + 1):
        pulled.append(number)
        yield batch(number)
    if error is not None:
        raise error


@pytest.fixture
def events(monkeypatch):
    return record_streams(monkeypatch)


def test_a_cpu_takes_nothing_ahead():
    pulled = []
    batches = DevicePrefetcher(loader(3, pulled), CPU)
    first = next(batches)
    batches.stage()
    assert pulled == [1] and first.end == 1
    assert [one.end for one in batches] == [2, 3]
    assert batches.waited > 0 and batches.copied == 0


def test_the_next_batch_is_copied_on_the_side_and_waited_for(events):
    pulled = []
    batches = DevicePrefetcher(loader(3, pulled), GPU)
    assert next(batches).end == 1
    # Loader and copy on the side stream; the main stream waits for the copy and holds the memory of all three tensors.
    first = [("enter", "side"), ("copy", 1), ("record", "side", 1), ("leave", "side"), ("wait", "main", 1)]
    assert events == first + [("use", "main")] * 3
    events.clear()
    batches.stage()
    batches.stage()  # once a batch
    assert pulled == [1, 2]
    assert events == [("enter", "side"), ("copy", 2), ("record", "side", 2), ("leave", "side")]
    assert next(batches).end == 2
    assert events[4:] == [("wait", "main", 2)] + [("use", "main")] * 3
    assert [one.end for one in batches] == [3]


def test_errors_belong_to_the_batch_that_is_not_there(events):
    batches = DevicePrefetcher(loader(2, [], UserError("a shard is gone")), GPU)
    for number in (1, 2):
        assert next(batches).end == number
        batches.stage()  # the second time the loader has failed already: a checkpoint can still be written
    for _ in range(2):
        with pytest.raises(UserError, match="a shard is gone"):
            next(batches)


def test_closing_closes_the_loader(events):
    pulled, closed = [], []

    def stream():
        try:
            yield from loader(9, pulled)
        finally:
            closed.append(True)

    batches = DevicePrefetcher(stream(), GPU)
    next(batches)
    batches.stage()
    batches.close()
    assert closed == [True] and pulled == [1, 2]
