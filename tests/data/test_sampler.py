"""The order: every entry once, the same for any ranks and batch, from any position; and who reads which shard when."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmfast.data.sampling.draws import hashed, permute
from mrmfast.data.sampling.order import ENTRIES, LANES, SHARDS
from mrmfast.data.sampling.sampler import Plan
from mrmfast.errors import UserError

exhaustive = settings(max_examples=200, deadline=None, derandomize=True)


@dataclass
class Case:
    """What a plan is made of, so that a resumed run can make it again."""

    per_shard: list
    seed: int
    window: int
    selected: np.ndarray | None = None
    weights: np.ndarray | None = None
    participant: np.ndarray | None = None

    def plan(self):
        return Plan(
            self.per_shard,
            self.seed,
            self.window,
            selected=self.selected,
            weights=self.weights,
            participant=self.participant,
        )

    def rows(self):
        return np.arange(sum(self.per_shard)) if self.selected is None else np.flatnonzero(self.selected)

    def check_epoch(self, samples):
        """Compare what an epoch held with what it should."""
        held, rows = Counter(samples), self.rows()
        assert set(held) <= set(rows.tolist())
        if self.weights is not None:
            share = self.weights[rows] / self.weights[rows].sum() * len(rows)
            copies = np.array([held[row] for row in rows.tolist()])
            assert copies.sum() == len(rows)
            assert (np.abs(copies - share) < 1 + 1e-6).all()
            assert (copies[share == 0] == 0).all()
        elif self.participant is not None:
            assert sorted(self.participant[samples]) == sorted(set(self.participant[rows]))
        else:
            assert sorted(samples) == rows.tolist()


@st.composite
def cases(draw):
    per_shard = draw(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
    total = sum(per_shard)
    case = Case(per_shard, draw(st.integers(0, 2**63 - 1)), draw(st.integers(0, 3)))
    if draw(st.booleans()):
        kept = draw(st.lists(st.booleans(), min_size=total, max_size=total).filter(any))
        case.selected = np.array(kept)
    kind = draw(st.sampled_from(["images", "weights", "participants"]))
    if kind == "weights":
        weights = st.lists(st.sampled_from([0, 0.1, 1, 1, 2.5, 40]), min_size=total, max_size=total)
        case.weights = np.array(draw(weights.filter(lambda w: np.array(w)[case.rows()].any())))
    if kind == "participants":
        case.participant = np.array(draw(st.lists(st.integers(0, 8), min_size=total, max_size=total)))
    return case


legs = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 7), st.integers(1, 6)), min_size=1, max_size=5)


def run(case, legs, without=frozenset()):
    """Train in legs of (batch, ranks, steps), each resumed from nothing but the position; return what was seen."""
    position, samples, epochs, positions = 0, [], [], []
    for batch, world, steps in legs:
        plan = case.plan()
        for _ in range(steps):
            whole = plan.take(position, batch, without)
            assert len(whole) == batch
            parts = [plan.share(whole, rank, world) for rank in range(world)]
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            alone = plan.share(whole, 0, 1)
            for name in ("sample", "epoch", "position"):
                assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(alone, name))
            position = whole.end
            samples += whole.sample.tolist()
            epochs += whole.epoch.tolist()
            positions += whole.position.tolist()
    return samples, epochs, positions, position


@exhaustive
@given(case=cases(), legs=legs)
def test_every_epoch_is_exact_for_any_ranks_batch_and_resume(case, legs):
    samples, epochs, positions, end = run(case, legs)
    assert positions == list(range(end))
    plan = case.plan()
    alone = plan.take(0, end)  # one rank, one batch, unbroken
    assert samples == alone.sample.tolist()
    assert epochs == alone.epoch.tolist()
    n = len(plan)
    assert epochs == [place // n for place in range(end)]
    for epoch in range(end // n):
        case.check_epoch(samples[epoch * n : (epoch + 1) * n])


@exhaustive
@given(case=cases(), legs=legs, data=st.data())
def test_skipped_samples_are_filled_from_the_stream(case, legs, data):
    plan, drawable = case.plan(), case.rows().tolist()
    if case.weights is not None:
        drawable = [row for row in drawable if case.weights[row]]
    bad = frozenset(data.draw(st.lists(st.sampled_from(drawable), max_size=len(drawable) - 1), label="bad"))
    if len(bad) == len(drawable) or (case.participant is not None and len(drawable) - len(bad) < 1):
        return
    samples, epochs, positions, end = run(case, legs, bad)
    stream = plan.take(0, end)
    good = [place for place in range(end) if int(stream.sample[place]) not in bad]
    assert positions == good
    assert samples == stream.sample[good].tolist()
    assert epochs == stream.epoch[good].tolist()
    assert end == len(samples) + sum(int(sample) in bad for sample in stream.sample)


def listed(case, epoch):
    """Return the order of an epoch of all images, made of lists as docs/decisions/loading.md describes it."""
    plan, ends = case.plan(), np.cumsum(case.per_shard)
    chosen = set(case.rows().tolist())
    shards = [
        [r for r in range(end - size, end) if r in chosen] for end, size in zip(ends, case.per_shard, strict=True)
    ]
    shards = [shard for shard in shards if shard]

    def shuffled(things, stream, *parts):
        key = hashed(case.seed, stream, *(np.array([part]) for part in parts)).repeat(len(things))
        return [things[i] for i in permute(np.arange(len(things)), np.full(len(things), len(things)), key)]

    if not case.window:
        return shuffled([row for shard in shards for row in shard], ENTRIES, epoch, 0)
    line = [(number, row) for number, shard in enumerate(shuffled(shards, SHARDS, epoch)) for row in shard]
    lanes, windows = [], 0
    for lane in range(plan.lanes):
        size = len(range(lane, len(plan), plan.lanes))
        mine, line = line[:size], line[size:]
        order, first = [], mine[0][0]
        for start in range(first, mine[-1][0] + 1, case.window):
            window = [row for number, row in mine if start <= number < start + case.window]
            order += shuffled(window, ENTRIES, epoch, windows)
            windows += 1
        lanes.append(order)
    return [lanes[place % plan.lanes][place // plan.lanes] for place in range(len(plan))]


@exhaustive
@given(case=cases())
def test_the_order_equals_one_made_of_lists(case):
    # 64-lane plans need more shards than Hypothesis draws.
    case.weights = case.participant = None
    for whole in (case, Case(case.per_shard * 17, case.seed, case.window)):
        plan = whole.plan()
        for epoch in (0, 5):
            assert plan.take(epoch * len(plan), len(plan)).sample.tolist() == listed(whole, epoch)


@exhaustive
@given(
    case=cases(), start=st.integers(0, 200), count=st.integers(0, 80), batch=st.integers(1, 30), world=st.integers(1, 7)
)
def test_shards_ahead_are_those_of_the_shares_in_order(case, start, count, batch, world):
    plan = case.plan()
    for rank in range(world):
        needed = {}
        for position in range(start, start + count, batch):
            part = plan.share(plan.take(position, min(batch, start + count - position)), rank, world)
            for _, shard in sorted(zip(part.position.tolist(), plan.shard_of(part.sample).tolist(), strict=True)):
                needed.setdefault(shard)
        assert plan.shards_ahead(start, count, rank, world, batch).tolist() == list(needed)


@pytest.mark.parametrize(("window", "order"), [(0, [15, 4, 2, 10, 2, 14, 4, 3]), (2, [0, 9, 7, 13, 15, 2, 9, 0])])
def test_the_order_stays_what_it_was(window, order):
    """A run resumed with a newer version must continue its epoch."""
    assert Plan([5, 3, 8], 1, window).take(12, 8).sample.tolist() == order


# What peers' users report most (loading.md), in terms of a plan.


def test_resume_neither_restarts_at_zero_nor_repeats():
    case = Case([10, 3, 40], seed=1, window=0)
    before = case.plan().take(0, 30)
    after = case.plan().take(before.end, 23)
    assert after.sample.tolist() != before.sample[:23].tolist()
    assert sorted([*before.sample, *after.sample]) == list(range(53))


@pytest.mark.parametrize("window", [0, 1])
def test_fewer_shards_than_ranks_and_samples_than_a_batch(window):
    case = Case([3], seed=0, window=window)
    samples, _, _, end = run(case, [(2, 7, 3), (10, 7, 3)])  # 7 ranks, one shard; then batches of three epochs
    assert [sorted(samples[i : i + 3]) for i in range(0, end - 2, 3)] == [[0, 1, 2]] * 12


@pytest.mark.parametrize("window", [0, 2])
def test_uneven_shards_end_their_epoch_together(window):
    case = Case([1, 0, 500, 2, 0, 97, 1], seed=3, window=window)
    plan = case.plan()
    steps = {len(range(0, 601, 50)) for _ in range(4)}
    assert steps == {13}  # a step is the same for all ranks: none waits for another at the end
    samples, *_ = run(case, [(50, 4, 12), (1, 3, 1)])
    assert sorted(samples) == list(range(601))
    assert plan.take(600, 2).epoch.tolist() == [0, 1]


def test_nothing_to_train_on_is_said():
    with pytest.raises(UserError, match="no images to draw from"):
        Plan([2, 3], 0, selected=np.zeros(5, bool))
    with pytest.raises(UserError, match="none of the 5 images can be read"):
        Plan([2, 3], 0).take(0, 1, frozenset(range(5)))


# Object mode: who reads what.

BIG = Case([int(size) for size in 20 + 60 * np.random.default_rng(0).random(512)], seed=5, window=2)


@pytest.mark.parametrize("world", [2, 4, 8, 7])
@pytest.mark.parametrize("batch", [256, 32])
def test_ranks_read_their_part_and_few_shards_at_a_time(world, batch):
    plan, size = BIG.plan(), np.array(BIG.per_shard)
    assert plan.lanes == LANES
    used = [{} for _ in range(world)]  # per rank: (lane, shard) -> first and last step
    # The second epoch, whose first batch begins in the one before.
    for step, position in enumerate(range(len(plan) - 11, 2 * len(plan), batch)):
        whole = plan.take(position, batch)
        for rank in range(world):
            part = plan.share(whole, rank, world)
            part = part[part.epoch == 1]
            for key in zip(
                (part.position % len(plan) % plan.lanes).tolist(),
                plan.shard_of(part.sample).tolist(),
                strict=True,
            ):
                used[rank][key] = (used[rank].get(key, (step,))[0], step)
    # More than 1 / N: lanes shared with a neighbour where N does not divide 64; a cut shard at either end and some of
    # the first and the last batch, of 512 shards.
    read = [size[list({shard for _, shard in shards})].sum() / size.sum() for shards in used]
    bound = 1 / world + 8 / 512 + (0 if LANES % world == 0 else 2 / LANES)
    assert max(read) <= bound, (read, bound)
    for shards in used:
        spans = np.array(list(shards.values()))
        steps = np.arange(spans.max() + 1)[:, None]
        in_use = ((spans[:, 0] < steps) & (steps < spans[:, 1])).sum(1)  # needed before this step and after it
        assert in_use.max() <= plan.open_shards(world)


def test_windows_mix_and_epochs_differ():
    plan = BIG.plan()
    first, second = (plan.take(epoch * len(plan), 256) for epoch in (0, 1))
    # 64 lanes with two shards each at their start.
    assert 100 <= len(set(plan.shard_of(first.sample).tolist())) <= 128
    assert len(set(first.sample.tolist()) & set(second.sample.tolist())) < 20
    assert not np.array_equal(first.sample, Case(BIG.per_shard, 6, 2).plan().take(0, 256).sample)


def test_few_shards_make_few_lanes():
    assert Plan([5] * 10 + [0] * 90, 0, 1).lanes == 8  # of a power of two, batches are multiples
    assert Plan([5] * 64, 0, 1).lanes == LANES
    assert Plan([5] * 10, 0, 0).lanes == 1
    assert Plan([5] * 10, 0, 0).open_shards(2) == np.inf


def test_the_benchmark_checks_what_it_times(monkeypatch):
    from benchmarks.harness import Bench, GateError
    from benchmarks.loader import sampler

    class Stuck(Plan):
        def take(self, position, *rest):
            return super().take(position - position % 7, *rest)

    for mode in ("object", "weights"):
        sampler.gates(Bench("plan"), mode, [sampler.measure(mode, 20_000, 50)])
    monkeypatch.setattr(sampler, "Plan", Stuck)
    with pytest.raises(GateError, match="object: a resumed run continues"):
        sampler.gates(Bench("plan"), "object", [sampler.measure("object", 20_000, 50)])


@pytest.mark.parametrize("mode", ["local", "object"])
def test_a_hundred_million_samples(mode):
    """In a process of its own, which also checks what it takes: see benchmarks/loader/sampler.py for the figures."""
    from benchmarks.loader.sampler import in_a_process

    figures = in_a_process(mode)
    assert all(figures.pop("checks").values())
    print({name: round(value, 4) for name, value in figures.items()})
    assert figures["peak"] < 500e6
    assert figures["plan"] + figures["position"] + figures["resume"] < 10  # 2 by the benchmark; machines are shared
