"""Goals of the main job on a GPU that take figures of several sections."""

from __future__ import annotations

from benchmarks.harness import Bench

PRODUCT, ARITHMETIC = "matrix product, bf16", "arithmetic: an image, forward and backward"
MICRO_BATCH = 256
JOB, STEP = f"main job, micro-batch {MICRO_BATCH}", f"step, micro-batch {MICRO_BATCH}"


def goals(bench: Bench) -> None:
    """Record the bars; a bar whose figures are absent counts as not measured, which does not hold."""
    measured = {figure["name"]: float(figure["value"]) for figure in bench.figures}

    def ratio(*names: str) -> float | None:
        """Product of all figures but the last, over the last."""
        if any(name not in measured for name in names) or not measured[names[-1]]:
            return None
        value = 1.0
        for name in names[:-1]:
            value *= measured[name]
        return value / measured[names[-1]]

    bench.bar(f"{JOB}: images/s", measured.get(f"{JOB}: training"), ">=", 1500)
    share = ratio(ARITHMETIC, f"{JOB}: training", PRODUCT)  # GFLOP/s over TFLOP/s
    bench.bar(f"{JOB}: share of the card's bf16 product", None if share is None else share / 1e3, ">=", 0.5)
    bench.bar(f"{JOB} / plain loop", ratio(JOB, f"{STEP}: ours"), "<=", 1.05)
    bench.bar(f"{JOB}: waiting for data", measured.get(f"{JOB}: waiting for data"), "<=", 0.02)
