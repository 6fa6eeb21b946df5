"""Participants' ids and genotypes in what commands print and leave behind: none, also where the commands fail.

``python -m benchmarks.robustness.canaries --json benchmarks/results/canaries.json``

A simulated cohort gets ids that occur nowhere else. Commands run on it as a user runs them; some end in an error about
a participant. Then every place that is not the dataset of these ids is searched: standard output and error, logs, runs
with checkpoints and TensorBoard, the folder of temporary files, command lines of all processes, and a dataset with
pseudonyms.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Bench, python

ROOT = Path(__file__).resolve().parents[2]
PARTICIPANTS = 64
CANARY = re.compile(rb"CANARY\d+")
GENOTYPES = re.compile(rb"(?:[01.][/|][01.][ \t,]+){6}")  # a row of calls
TINY = (
    "data.image_size=32", "model.arch=vit_tiny_patch16_224", "model.depth=3", "model.genome_layers=1", "data.threads=1",
    "objective.reconstruct.image_decoder={width: 32, depth: 1, heads: 2}", "batch_size=4", "steps=2",
    "objective.reconstruct.genome_decoder.width=32", "run.checkpoint_every=1", "run.log_samples=true",
    "engine.device=cpu",
)  # fmt: skip


class Command(NamedTuple):
    """A command line, what is done before it, and whether it must fail."""

    arguments: tuple[str, ...]
    fails: bool = False
    prepare: Callable[[], object] = lambda: None


def make_raw(folder: Path) -> list[str]:
    """Simulate a cohort and rename its participants; return their ids."""
    raw = folder / "raw"
    size = ("--participants", str(PARTICIPANTS), "--snps", "600", "--scores", "3", "--genes", "30")
    subprocess.run(python("-m", "preprocess", "simulate", "--out", str(raw), *size), check=True, capture_output=True)
    ids = sorted({path.name.split("_")[0] for path in (raw / "fundus").glob("*.jpg")})
    names = re.compile("|".join(ids).encode())

    def renamed(content: bytes) -> bytes:
        return names.sub(lambda match: b"CANARY" + match[0], content)

    for path in (raw / "fundus").glob("*.jpg"):
        path.rename(path.with_name(f"CANARY{path.name}"))
    for path in (raw / "genotypes").glob("*.fam"):
        path.write_bytes(renamed(path.read_bytes()))
    annotated = raw / "burden" / "rare.vep.vcf.gz"
    (raw / "rare.vcf").write_bytes(renamed(gzip.decompress(annotated.read_bytes())))
    (folder / "key").write_text("0123456789abcdef" * 4)
    rows = "".join(f"CANARY{name},{number}.5,1,0\n" for number, name in enumerate(ids))
    (raw / "expression.csv").write_text("case_id,A_rnaseq,B_cnv,C_mut\n" + rows)
    return [f"CANARY{name}" for name in ids]


def commands(work: Path, ids: list[str]) -> list[Command]:
    """Return the commands: those that work, then those that fail about a participant."""
    raw, plain, hidden = work / "raw", str(work / "plain"), str(work / "pseudonymised")
    key, fundus = (
        ("--pseudonymise", str(work / "key")),
        (str(raw / "fundus"), "--participant-pattern", r"(?P<participant>CANARY\d+)"),
    )
    vcf, bed, scores = str(raw / "rare.vcf"), str(raw / "genotypes"), str(raw / "pgs")
    works = [
        ("preprocess", "fundus", *fundus, "--size", "64", "--workers", "1", "--out", target, *options)
        for target, options in ((plain, ()), (hidden, key))
    ]
    for target, options in ((plain, ()), (hidden, key)):
        works += [
            ("preprocess", "snps", bed, "--reference", "a2", "--stride", "1", "--out", target, *options),
            ("preprocess", "pgs", scores, "--genotypes", bed, "--out", target, *options),
            ("preprocess", "burden", vcf, "--max-maf", "0.5", "--out", target, *options),
            ("preprocess", "report", target),
            ("check", target),
        ]
    works += [
        ("preprocess", "expression", str(raw / "expression.csv"), "--out", str(work / "expression")),
        ("preprocess", "report", str(work / "expression")),
    ]
    train = ("train", "--config", "demo", "--gpus", "1", *TINY, f"run.dir={work / 'runs'}")
    works += [
        (*train, "run.name=plain", f"data.path={plain}"),
        (*train, "run.name=plain", f"data.path={plain}", "--resume", "steps=3"),
        (*train, "run.name=pseudonymised", f"data.path={hidden}"),
        (*train, "run.name=simclr", f"data.path={plain}", "objective=simclr"),
    ]
    works = [tuple(part for part in line if not ("simclr" in str(line) and "reconstruct" in part)) for line in works]
    return [*map(Command, works), *_failing(work, ids, train)]


def _failing(work: Path, ids: list[str], train: tuple[str, ...]) -> Iterator[Command]:
    raw, plain, first = work / "raw", str(work / "plain"), ids[0]
    spoiled, out = work / "spoiled", str(work / "failed")
    spoiled.mkdir()

    def write(name: str, text: str) -> str:
        (spoiled / name).write_text(text)
        return str(spoiled / name)

    text = (raw / "rare.vcf").read_text()
    header, _, body = text.rpartition("#CHROM")
    twice = write("twice.vcf", f"{header}#CHROM{body}".replace(ids[1], first, 1))
    cut = write("cut.vcf", text[: len(text) - 300])
    calls = write("calls.vcf", text.replace("0/0", "x/y", 3))
    for name in ("chr1.bed", "chr1.bim"):
        shutil.copy(raw / "genotypes" / name, spoiled)
    family = (raw / "genotypes" / "chr1.fam").read_text()
    write("chr1.fam", family.replace(ids[1], first))
    image = spoiled / "images" / f"{first}_left_0.jpg"
    image.parent.mkdir()
    image.write_bytes(b"\xff\xd8\xff no image of " + first.encode())
    rows = "".join(f"{name},1\n" for name in ids)
    pattern = ("--participant-pattern", r"(?P<participant>CANARY\d+)")
    yield Command(("preprocess", "burden", twice, "--out", out), True)
    yield Command(("preprocess", "burden", cut, "--out", out), True)
    yield Command(("preprocess", "burden", calls, "--max-maf", "0.5", "--out", out), True)
    yield Command(("preprocess", "snps", str(spoiled / "chr1.bed"), "--reference", "a2", "--out", out), True)
    yield Command(("preprocess", "snps", twice, "--stride", "1", "--out", out), True)
    keep = write("keep.txt", "CANARY99999999 CANARY99999999\n")
    yield Command(
        ("preprocess", "snps", str(raw / "genotypes"), "--reference", "a2", "--keep", keep, "--out", out), True
    )
    yield Command(("preprocess", "fundus", str(image.parent), *pattern, "--workers", "1", "--out", out), True)
    table = write("table.csv", "file,participant\n" + f"{first}_left_0.jpg,\n")
    yield Command(("preprocess", "fundus", str(image.parent), "--participant-table", table, "--out", out), True)
    values = write("values.csv", f"case_id,A_rnaseq,B_cnv,C_mut\n{first},high,1,0\n{ids[1]},1,1,7\n")
    yield Command(("preprocess", "expression", values, "--out", out), True)
    weights = write("weights.csv", "participant,weight\n" + rows + f"{first},-1\n")
    yield Command((*train, "run.name=weights", f"data.path={plain}", f"data.weights={weights}"), True)
    labels = write("labels.csv", "participant,label\n" + rows + f"{first},2\n")
    label_keys = ("data.labels.kind=class", f"data.labels.path={labels}", "data.labels.by=participant")
    yield Command((*train, "run.name=labels", f"data.path={plain}", *label_keys, "data.labels.columns=[label]"), True)
    half = work / "half"

    def without_people() -> None:
        shutil.copytree(plain, half)
        for path in half.rglob("participants/c/0"):
            path.write_bytes(path.read_bytes()[:40])

    yield Command(
        (*train, "run.name=half", f"data.path={half}", "data.cache=" + str(work / "other")), True, without_people
    )


def run(arguments: tuple[str, ...], environment: dict[str, str]) -> tuple[int, bytes, set[bytes]]:
    """Run a command; return its status, what it printed, and the canaries in command lines meanwhile."""
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            python("-m", "mrmfast", *arguments), cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT
        )
        seen: set[bytes] = set()
        while process.poll() is None:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                    # The patterns in our own options are no canaries.
                    seen |= set(CANARY.findall(line))
                except OSError:
                    continue
            time.sleep(0.05)
        printed.seek(0)
        return process.returncode, printed.read(), seen


def search(folder: Path) -> list[str]:
    """Return the files below a folder that hold a canary, also inside gzip."""
    hits = []
    for path in sorted(folder.rglob("*")):
        if CANARY.search(path.name.encode()):
            hits.append(f"{path.relative_to(folder)} (its name)")
        if not path.is_file():
            continue
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        if CANARY.search(content) or GENOTYPES.search(content):
            hits.append(str(path.relative_to(folder)))
    return hits


def main() -> int:
    """Run the commands and search; return 0 where nothing is found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bench = Bench("canaries: ids of participants and their genotypes", arguments.json)
    with tempfile.TemporaryDirectory(prefix="canaries-") as name:
        work = Path(name)
        ids = make_raw(work)
        temporary, home = work / "tmp", work / "home"
        temporary.mkdir()
        home.mkdir()
        environment = {**os.environ, "TMPDIR": str(temporary), "HOME": str(home), "MRMFAST_CACHE": str(work / "cache")}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
        bench.gate("a canary would be found", bool(search(work / "raw")) and len(ids) == PARTICIPANTS)
        counts = {"commands": 0, "commands that fail": 0, "printed": 0, "in process lists": 0, "unexpected status": 0}
        for command in commands(work, ids):
            command.prepare()
            status, printed, seen = run(command.arguments, environment)
            hits = sorted({*CANARY.findall(printed), *GENOTYPES.findall(printed)})
            counts["commands"] += 1
            counts["commands that fail"] += status != 0
            counts["printed"] += bool(hits)
            counts["in process lists"] += len(seen)
            label = " ".join(Path(part).name for part in command.arguments[:3])
            if bool(status) != command.fails:
                counts["unexpected status"] += 1
                print(f"      {label}: status {status}: {printed[-400:]!r}", flush=True)
            for line in printed.splitlines():
                if CANARY.search(line) or GENOTYPES.search(line):
                    print(f"      printed by {label}: {line[:300]!r}", flush=True)
        places = {
            "runs, checkpoints and TensorBoard": work / "runs",
            "temporary files": temporary,
            "home folder": home,
            "the dataset with pseudonyms": work / "pseudonymised",
        }
        for label, folder in places.items():
            hits = search(folder)
            counts[f"files in {label}"] = len(hits)
            for hit in hits:
                print(f"      {label}: {hit}", flush=True)
    bench.gate(
        "at least 30 commands, of which 12 fail", counts["commands"] >= 30 and counts["commands that fail"] >= 12
    )
    for label, count in counts.items():
        bench.figure(label, count, "")
    for label in [label for label in counts if label not in ("commands", "commands that fail")]:
        bench.bar(label, counts[label], "<=", 0)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
