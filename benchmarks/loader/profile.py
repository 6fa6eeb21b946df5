"""Where our loader's time goes: a table, a trace for Chrome, a plot over time, and the bottleneck in a sentence."""

from __future__ import annotations

import json
import time
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.peers.ours import open_loader
from benchmarks.peers.task import THREADS, Task
from mrmfast.meters import STAGES, Meters, Span

matplotlib.use("Agg")
from matplotlib import pyplot

EPOCHS = 3
BINS = 60  # of the plot
BUSY = 0.85  # share of their time from which the decoding threads are what bounds
WAITING = 0.05  # share of its time that a consumer may wait before the loader is too slow for it
REMEDIES = {
    "fetch": "a faster link, more data.fetch.requests or a warm data.cache would help",
    "read": "a faster disk or more memory for the page cache would help",
    "decode": "more cores and data.threads, or smaller JPEGs would help",
    "augment": "more cores and data.threads would help",
    "join": "a faster disk for the cache of genetics would help",
}


def profile(task: Task, out: Path) -> str:
    """Run a few epochs with a trace; write ``profile.md``, ``trace.json`` and ``throughput.png`` into `out`.

    Parameters
    ----------
    task : Task
    out : Path
        Folder, made if it is not there.

    Returns
    -------
    str
        What ``profile.md`` holds.
    """
    out.mkdir(parents=True, exist_ok=True)
    meters = Meters(trace=True)
    loader = open_loader(task, meters)
    for _ in loader.batches(0, task.tiles):
        pass
    start = time.perf_counter()
    skipped, before = len(meters.spans), {name: meters.stages[name].seconds for name in STAGES}
    done = [(start, 0)]
    batches = loader.batches(task.tiles, (1 + EPOCHS) * task.tiles)
    while True:
        with meters.time("wait"):
            batch = next(batches, None)
        if batch is None:
            break
        done.append((time.perf_counter(), len(batch.keys)))
    elapsed = done[-1][0] - start
    spans = meters.spans[skipped:]
    seconds = {name: meters.stages[name].seconds - before[name] for name in STAGES}
    text = _table(seconds, spans, elapsed, EPOCHS * task.tiles) + "\n" + bottleneck(seconds, elapsed, THREADS) + "\n"
    (out / "profile.md").write_text(text)
    (out / "trace.json").write_text(json.dumps(chrome_trace(spans)))
    _plot(out / "throughput.png", spans, start - meters.began, np.array(done) - [start, 0])
    return text


def _table(seconds: dict[str, float], spans: list[Span], elapsed: float, count: int) -> str:
    lines = ["| stage | busy, s | of a core | us an image | pieces |", "|---|---:|---:|---:|---:|"]
    for name in STAGES:
        pieces = sum(span.stage == name for span in spans)
        if pieces:
            busy = seconds[name]
            lines.append(f"| {name} | {busy:.2f} | {busy / elapsed:.0%} | {busy / count * 1e6:.1f} | {pieces:,} |")
    head = f"{count:,} images in {elapsed:.2f} s: {count / elapsed:,.0f} images/s. The consumer only waits."
    return "\n".join([head, "", *lines, ""])


def bottleneck(seconds: dict[str, float], elapsed: float, threads: int) -> str:
    """Say in a sentence or two what bounds a loader.

    Parameters
    ----------
    seconds : dict of str to float
        Busy time of each stage, added up over its threads; ``wait`` is the consumer's.
    elapsed : float
        Seconds on the clock.
    threads : int
        That decode and augment.
    """
    waiting = seconds["wait"] / elapsed
    if waiting < WAITING:
        return f"The loader is not the bottleneck: its consumer waits {waiting:.0%} of the time."
    work = {name: seconds[name] for name in REMEDIES}
    busy = (work["decode"] + work["augment"]) / (elapsed * threads)
    if busy >= BUSY:
        slowest = max(("decode", "augment"), key=lambda name: work[name])
        share = work[slowest] / (work["decode"] + work["augment"])
        return (
            f"The bottleneck is {slowest}: the {threads} threads that decode and augment are busy {busy:.0%} of the "
            f"time, {share:.0%} of that in {slowest}; {REMEDIES[slowest]}."
        )
    feeding = max(("fetch", "read", "join"), key=lambda name: work[name])
    if work[feeding] >= BUSY * elapsed:
        return f"The bottleneck is {feeding}, busy {work[feeding] / elapsed:.0%} of the time; {REMEDIES[feeding]}."
    return (
        f"No stage is busy all the time: the {threads} threads that decode and augment are at {busy:.0%}, {feeding} at "
        f"{work[feeding] / elapsed:.0%}; what is missing went to Python between them, or to other programs."
    )


def chrome_trace(spans: list[Span]) -> dict[str, list[dict[str, object]]]:
    """Return spans in the format of ``chrome://tracing`` and Perfetto: microseconds, a row a thread."""
    rows = {thread: number for number, thread in enumerate(dict.fromkeys(span.thread for span in spans))}
    events: list[dict[str, object]] = []
    for thread, number in rows.items():
        stages = ", ".join(sorted({span.stage for span in spans if span.thread == thread}))
        events.append({"ph": "M", "name": "thread_name", "pid": 0, "tid": number, "args": {"name": stages}})
    for span in spans:
        event: dict[str, object] = {"ph": "X", "name": span.stage, "pid": 0, "tid": rows[span.thread]}
        event |= {"ts": span.start * 1e6, "dur": span.seconds * 1e6, "args": {"items": span.items}}
        events.append(event)
    return {"traceEvents": events}


def _plot(path: Path, spans: list[Span], began: float, done: np.ndarray) -> None:
    """Draw images per second, and below how many cores each stage keeps busy."""
    edges = np.linspace(0, done[-1, 0], BINS + 1)
    width = edges[1] - edges[0]
    images = np.histogram(done[:, 0], edges, weights=done[:, 1])[0] / width
    stages = [name for name in STAGES if name != "wait" and any(span.stage == name for span in spans)]
    busy = np.zeros((len(stages), BINS))
    for span in spans:
        if span.stage in stages:
            first, last = span.start - began, span.start - began + span.seconds
            shared = np.minimum(last, edges[1:]) - np.maximum(first, edges[:-1])
            busy[stages.index(span.stage)] += np.maximum(shared, 0) / width
    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6), constrained_layout=True)
    top.step(edges[:-1], images, where="post", color="tab:blue")
    top.set(ylabel="images/s", ylim=(0, None), title="Throughput of the loader")
    bottom.stackplot(edges[:-1], busy, labels=stages, step="post")
    bottom.set(ylabel="threads busy", xlabel="seconds", xlim=(0, edges[-1]))
    bottom.set_ylim(0, 1.2 * busy.sum(0).max())  # room for the legend
    bottom.legend(loc="upper right", ncols=len(stages))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
