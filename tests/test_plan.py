import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmfast.data.plan import Plan, rank_share, uniform

sizes = st.integers(1, 60)


def make(n, shard_size, seed, window):
    samples = np.arange(0, 3 * n, 3)  # a split: not every row is selected
    return Plan(samples, np.arange(n) // shard_size, seed, window)


@settings(max_examples=60, deadline=None)
@given(n=sizes, shard=st.integers(1, 9), seed=st.integers(0, 9), window=st.integers(0, 4), batch=st.integers(1, 17))
def test_every_epoch_holds_every_sample_once_for_any_batch(n, shard, seed, window, batch):
    plan, epochs = make(n, shard, seed, window), 3
    seen = {epoch: [] for epoch in range(epochs + 1)}
    for start in range(0, epochs * n, batch):
        piece = plan.take(start, min(batch, epochs * n - start))
        for sample, epoch in zip(piece.sample, piece.epoch, strict=True):
            seen[int(epoch)].append(int(sample))
    for epoch in range(epochs):
        assert sorted(seen[epoch]) == plan.samples.tolist()


@settings(max_examples=60, deadline=None)
@given(n=sizes, world=st.sampled_from([1, 2, 3, 4, 6]), seed=st.integers(0, 9), window=st.integers(0, 4))
def test_the_order_does_not_depend_on_the_number_of_ranks(n, world, seed, window):
    plan, batch = make(n, 5, seed, window), 12
    for step in range(4):
        whole = plan.take(step * batch, batch).sample
        shares = [rank_share(batch, world, rank) for rank in range(world)]
        pieces = [plan.take(step * batch + offset, count).sample for offset, count in shares]
        assert np.array_equal(np.concatenate(pieces), whole)


@given(n=sizes, start=st.integers(0, 200), seed=st.integers(0, 3))
def test_any_position_continues_the_same_stream(n, start, seed):
    stream = make(n, 4, seed, 2).take(0, start + 30).sample
    assert np.array_equal(make(n, 4, seed, 2).take(start, 30).sample, stream[start:])


def test_windows_bound_the_shards_in_use_and_epochs_differ():
    plan = make(100, 5, 0, 2)
    first, second = plan.epoch_order(0), plan.epoch_order(1)
    assert not np.array_equal(first, second)
    shard_of = dict(zip(plan.samples.tolist(), plan.shard.tolist(), strict=True))
    for start in range(0, 100, 10):
        assert len({shard_of[s] for s in first[start : start + 10].tolist()}) <= 2


def test_draws_are_pure_uniform_and_independent():
    sample, epoch = np.arange(20_000), np.zeros(20_000, int)
    angle, flip = uniform(1, epoch, sample, 0), uniform(1, epoch, sample, 1)
    assert np.array_equal(angle[[7, 3]], uniform(1, epoch[:2], np.array([7, 3]), 0))
    # Kolmogorov-Smirnov at 20,000 draws: 1.63 / sqrt(n) is the 1 % bound.
    assert np.abs(np.sort(angle) - np.linspace(0, 1, 20_000)).max() < 1.63 / np.sqrt(20_000)
    assert abs(np.corrcoef(angle, flip)[0, 1]) < 0.03
    assert abs(np.corrcoef(angle, uniform(1, epoch + 1, sample, 0))[0, 1]) < 0.03
    assert abs(np.corrcoef(angle, uniform(2, epoch, sample, 0))[0, 1]) < 0.03
