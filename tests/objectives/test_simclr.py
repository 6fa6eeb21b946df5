"""SimCLR's loss, and over ranks; ``test_official.py`` compares it with the published code's numbers."""

import math

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from mrmfast.objectives.collectives import all_gather
from mrmfast.objectives.losses import nt_xent
from tests.helpers.common import TINY_MODEL, free_port, read_jsonl, train


def test_equal_vectors_give_the_loss_of_a_guess():
    vectors = torch.ones(16, 8, dtype=torch.float64)
    assert nt_xent(vectors, vectors, 0.1).item() == pytest.approx(2 * math.log(31), rel=1e-12)


def test_rows_share_out_the_loss():
    first, second = torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    halves = [nt_xent(first, second, 0.2, rows) for rows in (slice(0, 3), slice(3, 6))]
    assert torch.allclose(sum(halves) / 2, nt_xent(first, second, 0.2))


def _rank(rank, world, port, queue):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    x = torch.arange(6.0).view(3, 2).add(10 * rank).requires_grad_()
    gathered = all_gather(x)
    (gathered * torch.arange(12.0).view(6, 2) * (rank + 1)).sum().backward()
    queue.put((rank, gathered.detach().numpy().copy(), x.grad.numpy().copy()))
    queue.close()
    queue.join_thread()
    dist.barrier()
    dist.destroy_process_group()


def test_gathering_adds_up_the_gradients_of_all_ranks(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    context, port = multiprocessing.get_context("spawn"), free_port()
    queue = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, 2, port, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    results = sorted((queue.get(timeout=120) for _ in ranks), key=lambda result: result[0])
    for process in ranks:
        process.join(30)
    base = np.arange(6.0).reshape(3, 2)
    for rank, gathered, gradient in results:
        assert np.array_equal(gathered, np.concatenate([base, base + 10]))
        # Weight 1 on rank 0, 2 on rank 1: three times what this part was multiplied by.
        assert np.array_equal(gradient, 3 * np.arange(12.0).reshape(6, 2)[3 * rank : 3 * rank + 3])


@pytest.mark.slow
def test_two_ranks_compute_the_loss_of_one(dataset, tmp_path):
    """Negatives and BatchNorm see the samples of both ranks; with half of them the loss is another."""
    losses = {}
    for ranks in (1, 2):
        run = {"data.path": dataset, "run.dir": tmp_path, "run.name": f"ranks{ranks}", "steps": 3, "batch_size": 8}
        options = [*TINY_MODEL, "objective=simclr", "engine.zero_stage=0", *(f"{k}={v}" for k, v in run.items())]
        done = train("--config", "configs/demo.yaml", *options, ranks=ranks)
        assert done.returncode == 0, done.stderr[-3000:]
        losses[ranks] = [line["loss"] for line in read_jsonl(tmp_path / f"ranks{ranks}/metrics.jsonl")]
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)
    assert losses[1][0] == pytest.approx(losses[2][0], rel=1e-6)
