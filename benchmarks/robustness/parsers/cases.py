"""Runs mutated inputs in a forked process with limits of time and memory."""

from __future__ import annotations

import json
import os
import resource
import signal
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.robustness.parsers.mutate import mutated
from benchmarks.robustness.parsers.targets import TARGETS
from mrmfast.errors import UserError

SECONDS = 10.0
MEMORY = 1 << 30  # bytes of address space beyond what the process has at the start


@dataclass(frozen=True)
class Outcome:
    """How one case ended.

    Attributes
    ----------
    seed : int or None
        None is the valid input.
    kind : str
        ``read``, ``refused``, ``traceback``, ``memory``, ``hang`` or ``crash``.
    text : str
        The message, or where the traceback ends.
    seconds, megabytes : float
        Duration, and growth of the peak of resident memory.
    """

    seed: int | None
    kind: str
    text: str
    seconds: float
    megabytes: float


def run_cases(name: str, seeds: list[int | None]) -> list[Outcome]:
    """Run the cases of one parser; a case that kills the process is a ``crash``, and the rest goes to a new process."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(seeds):
        done = _forked(name, seeds[len(outcomes) :])
        outcomes += done
        if len(outcomes) < len(seeds):
            outcomes.append(Outcome(seeds[len(outcomes)], "crash", "the process died", 0.0, 0.0))
    return outcomes


def _forked(name: str, seeds: list[int | None]) -> list[Outcome]:
    """Run cases in a child until it dies; outcomes arrive one by one."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _work(name, seeds, writing)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        outcomes = [Outcome(**json.loads(line)) for line in pipe if line.endswith("\n")]
    os.waitpid(child, 0)
    return outcomes


def _work(name: str, seeds: list[int | None], writing: int) -> NoReturn:
    # The libraries' own lines on stderr (htslib) are no result.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _too_slow)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    with open(writing, "w", encoding="utf-8") as pipe:
        for seed in seeds:
            pipe.write(json.dumps(asdict(run_case(name, seed))) + "\n")
            pipe.flush()
    os._exit(0)


def _too_slow(*_: object) -> NoReturn:
    raise TimeoutError


def run_case(name: str, seed: int | None) -> Outcome:
    """Run one case in this process, with the limit of time if the caller handles SIGALRM."""
    target = TARGETS[name]
    files = target.files()
    if seed is not None:
        files = mutated(files, seed)
    before, start = _peak(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            (Path(folder) / file).write_bytes(content)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            kind, text = _outcome(name, Path(folder))
        except TimeoutError:
            kind, text = "hang", f"more than {SECONDS:g} s"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return Outcome(seed, kind, text, time.perf_counter() - start, _peak() - before)


def _outcome(name: str, folder: Path) -> tuple[str, str]:
    try:
        TARGETS[name].read(folder)
    except UserError as error:
        text = str(error)
        return ("traceback", "a message of several lines") if "\n" in text else ("refused", text)
    except TimeoutError:
        raise
    except MemoryError as error:
        return "memory", _place(error)
    except BaseException as error:  # whatever ends a command in a traceback
        return "traceback", _place(error)
    return "read", ""


def _place(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "preprocess" in frame.filename]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {str(error)[:120]!r}{where}"


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
