"""Conversion of SNPs at scale: kills, reruns, clusters, object stores, memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from preprocess.__main__ import main
from preprocess.genetics.genotypes import twobit_cpu
from tests.helpers.genetics_cases import cohort_and_scores
from tests.preprocess.genetics.test_genotypes import write_bgen
from tests.preprocess.genetics.test_snps import (
    all_bytes,
    complaint,
    opened,
    people,
    preprocess,
    random_calls,
    unpacked,
    write_bed,
)

ROOT = Path(__file__).resolve().parents[3]
# Runs a command and dies by SIGKILL at the n-th rename (before it or after it), or at none.
DYING = """
import os, signal, sys
count, before, arguments = int(sys.argv[1]), sys.argv[2] == "before", sys.argv[3:]
def dying(rename):
    def replacement(*given, **named):
        global count
        count -= 1
        if count == 0 and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = rename(*given, **named)
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return replacement
os.replace, os.rename = dying(os.replace), dying(os.rename)
from preprocess.__main__ import main
sys.exit(main(arguments))
"""


def big_bed(path: Path, participants: int, variants: int) -> Path:
    """Write random bytes as genotypes; fast to make."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    path.write_bytes(b"\x6c\x1b\x01" + rng.bytes(variants * -(-participants // 4)))
    path.with_suffix(".fam").write_text("".join(f"{n} {n} 0 0 0 -9\n" for n in range(1, participants + 1)))
    path.with_suffix(".bim").write_text(
        "".join(f"{1 + n * 22 // variants}\trs{n}\t0\t{n + 1}\tA\tG\n" for n in range(variants))
    )
    return path


def source_of(kind: str, folder: Path) -> tuple[Path, str]:
    if kind == "bed":
        return big_bed(folder / "x.bed", 40_000, 600), "a2"
    rng = np.random.default_rng(1)
    rows = [("1", f"rs{n}", n + 1, ["A", "G"], rng.dirichlet((1, 1, 1), 300)[:, :2]) for n in range(400)]
    return write_bgen(folder / "x.bgen", rows, people(300)), "ref-first"


def settled(folder: Path) -> dict[str, bytes]:
    """Bytes of a finished dataset; locks are empty files and may stay."""
    return {name: content for name, content in all_bytes(folder).items() if not name.endswith(".lock")}


@pytest.mark.parametrize("kind", ["bed", "bgen"])
def test_killed_at_random_moments_and_rerun_gives_the_same_bytes(tmp_path, kind):
    source, reference = source_of(kind, tmp_path)
    command = ["snps", source, "--reference", reference, "--stride", 1, "--workers", 1, "--memory", 64]
    preprocess(*command, "--out", tmp_path / "whole")
    dice = random.Random(kind)
    kills = 0
    for attempt in range(40):
        # First near the end, so that every later part of the work is met half done at least once.
        die_at = dice.randint(1, 12) if attempt < 7 else 0
        arguments = [str(argument) for argument in (*command, "--out", tmp_path / "killed")]
        moment = dice.choice(["before", "after"])
        done = subprocess.run(
            [sys.executable, "-c", DYING, str(die_at), moment, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode in (0, 2):
            break
        assert done.returncode == -9, done.stderr
        kills += 1
    # Status 2: killed after the very last rename, the rerun says that the store is there.
    assert done.returncode == 0 or "already exists" in done.stderr
    assert kills >= 2
    assert settled(tmp_path / "killed") == settled(tmp_path / "whole")


def test_a_killed_pgs_is_swept_away_and_gives_the_same_bytes(tmp_path):
    bed, folder, _, _ = cohort_and_scores(tmp_path)
    command = ["pgs", folder, "--genotypes", bed]
    preprocess(*command, "--out", tmp_path / "whole")
    out = tmp_path / "killed"
    left: set[str] = set()
    for die_at in (1, 2, 3, 4, 5, 6):
        arguments = [str(argument) for argument in (*command, "--out", out)]
        code = [sys.executable, "-c", DYING, str(die_at), "before", *arguments]
        done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_dir()}
        left |= {name.split(".")[1] for name in found if name.startswith(".pgs.")}
        assert sum(name.startswith(".pgs.") and "/" not in name for name in found) <= 2, "two runs' leavings"
        left |= {"zarr" for name in found if name == ".pgs.zarr.partial"}
    assert left == {"pgs", "zarr"}, "killed with sums on disk, and with half a store"
    preprocess(*command, "--out", out) if done.returncode else None
    assert settled(out) == settled(tmp_path / "whole")


def test_parts_are_used_again_and_dropped_when_options_change(tmp_path, capsys):
    source, reference = source_of("bed", tmp_path)
    command = ["snps", source, "--reference", reference, "--workers", 1, "--memory", 64, "--out", tmp_path / "d"]
    arguments = [str(argument) for argument in (*command, "--stride", 1)]
    twobit_cpu.library()  # compiled before: its rename would count
    subprocess.run([sys.executable, "-c", DYING, "3", "after", *arguments], cwd=ROOT, capture_output=True, check=False)
    parts = sorted((tmp_path / "d/.snps.parts").glob("rows-*"))
    assert len(parts) == 2, "the folder's mark, then two parts"
    times = [part.stat().st_mtime_ns for part in parts]
    copy = tmp_path / "e"
    subprocess.run(["cp", "-a", tmp_path / "d", copy], check=True)
    preprocess(*command, "--stride", 1)
    assert "parts of an earlier run" in capsys.readouterr().out
    assert all(times)
    preprocess(*command[:-1], copy, "--stride", 2)
    assert "parts of an earlier run" not in capsys.readouterr().out
    assert len(opened(copy, "snps").features) == sum(
        len(range(0, n, 2)) for n in np.bincount(np.arange(600) * 22 // 600)
    )


def test_a_dask_cluster_gives_the_same_bytes(tmp_path, capsys):
    from distributed import LocalCluster

    source, reference = source_of("bgen", tmp_path)
    command = ["snps", source, "--reference", reference, "--stride", 1]
    preprocess(*command, "--out", tmp_path / "here")
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        preprocess(*command, "--out", tmp_path / "there", "--scheduler", cluster.scheduler_address)
    assert settled(tmp_path / "here") == settled(tmp_path / "there")
    message = complaint(capsys, *command, "--out", tmp_path / "none", "--scheduler", "nonsense://x")
    assert "--scheduler" in message


def test_memory_stays_bounded(tmp_path):
    """200 MB of genotypes in a process that may hold 64 MB of them, and twice that beside."""
    source = big_bed(tmp_path / "x.bed", 100_000, 8000)
    # VmHWM, not ru_maxrss: a child begins with the peak of the process that started it.
    code = """
import re, sys
import preprocess.genetics.snps.command
from preprocess.__main__ import main
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
open("/proc/self/clear_refs", "w").write("5")
start = status("VmRSS")
code = main(sys.argv[1:])
print("grew", status("VmHWM") - start)
sys.exit(code)
"""
    options = ["--reference", "a2", "--stride", "1", "--memory", "64", "--workers", "1", "--out", str(tmp_path / "d")]
    done = subprocess.run(
        [sys.executable, "-c", code, "snps", str(source), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    grown = int(done.stdout.split("grew")[1])
    # Ids, the variant table and Zarr itself come on top of --memory; a byte a genotype would be 800 MB.
    assert 20 < grown < 64 + 130, f"{grown} MB"
    print(f"grew by {grown} MB")


@pytest.fixture
def bucket(upload):
    """An empty bucket of the server on this machine."""
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="biobank")
    for entry in client.list_objects_v2(Bucket="biobank").get("Contents", []):
        client.delete_object(Bucket="biobank", Key=entry["Key"])
    return client


def test_source_and_target_on_an_object_store(tmp_path, bucket, monkeypatch, capsys):
    monkeypatch.setenv("MRMFAST_CACHE", str(tmp_path / "cache"))
    calls = random_calls(50, 30)
    bed = write_bed(tmp_path / "x.bed", calls, people(50))
    for suffix in (".bed", ".bim", ".fam"):
        bucket.upload_file(str(bed.with_suffix(suffix)), "biobank", f"raw/x{suffix}")
    options = ("--reference", "a2", "--stride", 1)
    preprocess("snps", bed, *options, "--out", tmp_path / "d")
    for number, source in enumerate(("s3://biobank/raw/x.bed", "s3://biobank/raw")):
        preprocess("snps", source, *options, "--out", f"s3://biobank/out{number}")
        listed = bucket.list_objects_v2(Bucket="biobank", Prefix=f"out{number}/")["Contents"]
        remote = {
            entry["Key"].split("/", 1)[1]: bucket.get_object(Bucket="biobank", Key=entry["Key"])["Body"].read()
            for entry in listed
        }
        assert remote == settled(tmp_path / "d")
        newest = max(listed, key=lambda entry: entry["LastModified"])["LastModified"]
        of = {entry["Key"]: entry["LastModified"] for entry in listed}
        assert of[f"out{number}/dataset.json"] == newest, "the manifest comes last"
    assert "already exists" in complaint(capsys, "snps", bed, *options, "--out", "s3://biobank/out0")
    assert "does not exist" in complaint(capsys, "snps", "s3://biobank/nothing.bed", *options, "--out", tmp_path / "n")
    assert "local folders only" in complaint(capsys, "burden", "s3://biobank/x.vcf", "--out", tmp_path / "n")


@pytest.mark.parametrize("source", ["s3://biobank/raw/x.bed", "s3://biobank/raw"])
def test_a_changed_remote_file_is_fetched_again(tmp_path, bucket, monkeypatch, source):
    """A corrected .bed has the size of the wrong one; what is gone from the folder is no longer read."""
    monkeypatch.setenv("MRMFAST_CACHE", str(tmp_path / "cache"))
    calls = random_calls(50, 30)

    def upload(name: str, values: np.ndarray, **columns: list) -> None:
        bed = write_bed(tmp_path / f"{name}.bed", values, people(50), **columns)
        for suffix in (".bed", ".bim", ".fam"):
            bucket.upload_file(str(bed.with_suffix(suffix)), "biobank", f"raw/{name}{suffix}")

    def run(out: str) -> np.ndarray:
        preprocess("snps", source, "--reference", "a2", "--stride", 1, "--out", tmp_path / out)
        return unpacked(opened(tmp_path / out, "snps"))

    upload("x", 2 - np.maximum(calls, 0))
    upload("y", calls, chromosome=["2"] * 30, sid=[f"y{n}" for n in range(30)])
    assert run("first").shape == (50, 60 if source.endswith("raw") else 30)
    upload("x", calls)
    for suffix in (".bed", ".bim", ".fam"):
        bucket.delete_object(Bucket="biobank", Key=f"raw/y{suffix}")
    np.testing.assert_array_equal(run("second"), np.where(calls < 0, 3, calls))
    # Nothing has changed: nothing is fetched.
    with monkeypatch.context() as patch:
        patch.setattr("preprocess.genetics.remote._download", None)
        run("third")


def test_lacking_credentials_are_one_clear_error(tmp_path, bucket, monkeypatch, capsys):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    message = complaint(capsys, "snps", "s3://biobank/raw", "--reference", "a2", "--out", tmp_path / "d")
    assert "s3://biobank/raw: no credentials for this bucket; set AWS_ACCESS_KEY_ID" in message


@pytest.mark.parametrize("command", ["snps", "pgs", "burden", "expression"])
def test_two_commands_do_not_write_one_dataset(tmp_path, capsys, command):
    from filelock import FileLock

    bed = write_bed(tmp_path / "x.bed", random_calls(9, 4), people(9))
    options = {"snps": ("--reference", "a2"), "pgs": ("--genotypes", bed)}.get(command, ())
    leavings = [f".{command}.abcd1234/sums", f"reports/.{command}.json.7.partial"]
    leavings += [".rna.zarr.partial/zarr.json"] if command == "expression" else [f".{command}.zarr.partial/zarr.json"]
    for name in leavings:
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_text("half")
    with FileLock(tmp_path / f"d/.{command}.lock"):
        message = complaint(capsys, command, bed, *options, "--out", tmp_path / "d")
        assert f"another {command} command" in message
        assert all((tmp_path / "d" / name).exists() for name in leavings), "they may be the other one's"
    main([command, str(bed), *map(str, options), "--out", str(tmp_path / "d"), "--split-seed", "1"])
    assert not any((tmp_path / "d" / name).exists() for name in leavings)


def test_options_out_of_range_are_named(tmp_path, capsys):
    bed = write_bed(tmp_path / "x.bed", random_calls(9, 4), people(9))
    for option, value in (("--workers", 0), ("--memory", 10), ("--stride", 0)):
        message = complaint(capsys, "snps", bed, "--reference", "a2", "--out", tmp_path / "d", option, value)
        assert f"{option} {value}" in message


def test_files_by_chromosome_in_other_orders_pack_alike(tmp_path):
    """Rows that are not neighbours take another way through the packing than whole runs do."""
    calls = random_calls(203, 60)
    ids = people(203)
    rng = np.random.default_rng(5)
    for number in (1, 2, 3):
        order = np.arange(203) if number == 1 else rng.permutation(203)
        write_bed(
            tmp_path / f"raw/chr{number}.bed",
            calls[order][:, 20 * (number - 1) : 20 * number],
            [ids[row] for row in order],
            chromosome=[str(number)] * 20,
            sid=[f"rs{number}_{n}" for n in range(20)],
        )
    preprocess("snps", tmp_path / "raw", "--reference", "a2", "--stride", 1, "--out", tmp_path / "d")
    np.testing.assert_array_equal(unpacked(opened(tmp_path / "d", "snps")), np.where(calls < 0, 3, calls))
    assert threading.active_count() < 50
    assert os.path.exists(tmp_path / "d/reports/snps.json")
