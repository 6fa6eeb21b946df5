"""Files of strangers, full and read-only disks, names that are markup, and ids in messages."""

import errno
import json
import os
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.robustness.canaries import search
from mrmfast.command import USER_ERROR, run_command
from mrmfast.data.dataset import open_dataset
from mrmfast.data.genetics.store import FeatureTable
from mrmfast.errors import UserError, os_error_message
from mrmfast.formats.modality_writer import write_modality
from mrmfast.models.export import ExportRecipe, export_encoder, load_encoder
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.training.micro_batch import need_memory
from preprocess import commands
from preprocess.__main__ import main
from preprocess.report import figures
from tests.helpers.common import write_dataset

ARCH = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing here may look for a machine."""

    def refused(*arguments, **more):
        raise AssertionError("looked for a machine on the network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An exported encoder and its recipe."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    encoder = ImageEncoder(ARCH, 32, 2)
    export_encoder(path, dict(encoder.named_parameters()), ExportRecipe(encoder.arch, encoder.arguments))
    load_encoder(path)
    return path, json.loads(path.with_suffix(".json").read_text())


class RunsCode:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def refused_recipe(exported, text):
    """The message about an encoder with another recipe."""
    path, recipe = exported
    path.with_suffix(".json").write_bytes(text)
    try:
        with pytest.raises(UserError) as caught:
            load_encoder(path)
    finally:
        path.with_suffix(".json").write_text(json.dumps(recipe))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


NAMES = [
    "hf-hub:attacker/x", "hf_hub:attacker/x", "local-dir:/tmp", "https://host/x", "../x", f"{ARCH}.evil", "resnet18",
    "vit_gigantic_patch14_224", "mrmfast_literal_vit", "", 5, None, [ARCH], {"a": 1},
]  # fmt: skip
ARGUMENTS = [
    {"checkpoint_path": "evil.pth"}, {"pretrained": True}, {"pretrained_cfg": {"url": "http://127.0.0.1:9/x"}},
    {"pretrained_cfg": {"file": "evil.pth"}}, {"pretrained_cfg_overlay": {"file": "evil.pth"}}, {"cache_dir": "/tmp"},
    {"scriptable": True}, {"img_size": 10**9}, {"img_size": True}, {"img_size": "32"}, {"img_size": -1},
    {"depth": 10**6},
    {"depth": 0}, {"num_classes": 10**9}, {"base": "hf-hub:a/b"}, {"act_layer": "os.system"}, {"depth": 3},
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_a_recipe_names_only_models_of_the_installed_timm(name, exported):
    refused_recipe(exported, json.dumps({**exported[1], "timm_model": name}).encode())


@pytest.mark.parametrize("changes", ARGUMENTS, ids=str)
def test_a_recipe_has_only_the_arguments_of_an_export(changes, exported, tmp_path):
    mark = tmp_path / "executed"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(RunsCode(mark)))
    text = json.dumps({**exported[1], "arguments": {**exported[1]["arguments"], **changes}})
    refused_recipe(exported, text.replace("evil.pth", str(tmp_path / "evil.pth")).encode())
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"[" * 60_000, b"\xff\xfe", b"{", b"x" * 70_000, b'{"timm_model": "a"}', b'{"a": NaN}'],
    ids=lambda text: str(text[:8]),
)
def test_a_recipe_that_is_none_is_refused(text, exported):
    refused_recipe(exported, text)


@pytest.mark.parametrize(
    "change", [{"mean": [1, 2]}, {"std": [0, 1, 1]}, {"mean": ["a", 1, 1]}, {"std": None}], ids=str
)
def test_normalisation_of_a_recipe_is_three_numbers(change, exported):
    refused_recipe(exported, json.dumps({**exported[1], **change}).encode())


def test_a_recipe_of_another_base_is_held_to_the_same_names(exported):
    arguments = {**exported[1]["arguments"], "base": "hf-hub:a/b", "relation_blocks": 1}
    text = json.dumps({**exported[1], "timm_model": "mrmfast_literal_vit", "arguments": arguments})
    assert "arguments.base='hf-hub:a/b'" in refused_recipe(exported, text.encode())


def test_weights_that_are_a_pickle_are_not_loaded(exported, tmp_path):
    recipe = exported[1]
    (tmp_path / "encoder.json").write_text(json.dumps(recipe))
    for write in (pickle.dump, torch.save):
        with open(tmp_path / "encoder.safetensors", "wb") as file:
            write(RunsCode(tmp_path / "executed"), file)
        with pytest.raises(UserError, match="not an exported encoder"):
            load_encoder(tmp_path / "encoder.safetensors")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("arch", ["hf-hub:a/b", "hf_hub:a/b", "local-dir:/tmp", "vit_bse_patch16_224", "resnet18", ""])
def test_an_architecture_of_a_config_is_one_of_the_installed_timm(arch):
    with pytest.raises(UserError, match=r"model\.arch="):
        ImageEncoder(arch, 32)


def test_a_model_that_the_memory_cannot_hold_is_refused_before_it_is_built():
    need_memory(1_000_000, torch.device("cpu"))
    with pytest.raises(UserError, match=r"100 G parameters and needs 1600\.0 GB"):
        need_memory(10**11, torch.device("cpu"))


@pytest.mark.parametrize("cache", ["/proc", "/proc/self", "/dev/null/x", "/sys/kernel"])
def test_a_cache_that_cannot_be_written_is_named_at_once(cache, dataset):
    with pytest.raises(UserError, match=r"cannot be written; set data\.cache"):
        open_dataset(str(dataset), cache=cache)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "x", "/d/f"), "/d/f: no space left on device; free space"),
        (OSError(errno.EDQUOT, "x"), "OUT: the quota is used up"),
        (PermissionError(errno.EACCES, "x", "/d/f"), "/d/f: permission denied"),
        (OSError(errno.EROFS, "x", b"/d/\xff"), "/d/\\udcff: read-only file system"),
        (OSError(errno.EMFILE, "x"), "too many open files; raise the limit, e.g. ulimit -n 4096"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/d/f"), "/d/f: file name too long"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/d"), "/d: is a directory"),
    ],
)
def test_an_error_of_the_machine_is_one_line(error, message, capsys):
    def call():
        raise error

    assert run_command(call, lambda: "OUT") == USER_ERROR
    assert message in capsys.readouterr().err
    assert os_error_message(OSError()) is None
    with pytest.raises(OSError, match="defect"):
        run_command(lambda: (_ for _ in ()).throw(OSError("defect")))


@pytest.mark.parametrize("out", ["/proc/x", "/sys/kernel/x", "/dev/null/x"])
def test_a_folder_that_cannot_be_written_is_one_line_in_every_preprocessor(out, tmp_path, capsys, dataset):
    table = tmp_path / "t.csv"
    table.write_text("case_id,A_rnaseq,C_cnv,D_mut\nP001,1,0,1\nP002,3,1,0\n")
    for arguments in (
        ["expression", str(table), "--out", out],
        ["fundus", str(tmp_path), "--out", out, "--workers", "1"],
        ["snps", str(table), "--out", out],
        ["pgs", str(table), "--genotypes", str(table), "--out", out],
        ["burden", str(table), "--out", out],
        ["simulate", "--out", out],
        ["report", str(dataset), "--html", f"{out}/page.html"],
    ):
        assert main(arguments) == USER_ERROR, arguments
        assert capsys.readouterr().err.count("\n") == 1


def test_nobody_else_reads_what_a_preprocessor_writes(tmp_path):
    before = os.umask(0o022)
    try:
        commands.protect_files()
        write_dataset(tmp_path / "d", participants=2)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "d").rglob("*") if path.is_file()}
    assert modes and not any(mode & 0o007 for mode in modes)


HOSTILE = [
    r"$\frac{$ a",
    "a$b$c",
    "$$",
    r"$x_{",
    "<script>alert(1)</script>",
    '"><img src=x onerror=1>',
    "--><!--",
    "{{7*7}}",
]


def test_names_with_markup_are_text_in_the_report(tmp_path, capsys):
    write_dataset(tmp_path / "d", genetics=False)
    names = [f"{text}{number}" for number, text in enumerate(HOSTILE)]
    for modality, encoding in (("pgs", "float"), ("burden", "binary")):
        values = np.zeros((4, len(names)), np.float32 if encoding == "float" else np.int64)
        table = FeatureTable.build(names, names)
        write_modality(tmp_path / "d", modality, encoding, ["a", "b", "c", "d"], table, [values])
    assert main(["report", str(tmp_path / "d")]) == 0
    page = (tmp_path / "d/reports/genetics.html").read_text()
    assert "<script" not in page and "<img" not in page
    assert "{{7*7}}7" in page and "--><!--" not in page


@pytest.mark.parametrize("text", HOSTILE)
def test_a_figure_draws_any_name(text):
    assert figures.bars([text], [3], text).startswith("<svg")


def test_ids_are_not_printed_where_a_command_fails_about_a_participant(tmp_path, capfd):
    ids = ["CANARY11", "CANARY12"]
    (tmp_path / "values.csv").write_text(f"case_id,A_rnaseq,B_cnv,C_mut\n{ids[0]},high,1,0\n{ids[1]},1,1,7\n")
    (tmp_path / "x.fam").write_text(f"{ids[0]} {ids[0]} 0 0 1 -9\n{ids[0]} {ids[0]} 0 0 1 -9\n")
    (tmp_path / "x.bim").write_text("1 rs1 0 1 A G\n")
    (tmp_path / "x.bed").write_bytes(b"\x6c\x1b\x01\x00")
    out = ["--out", str(tmp_path / "out")]
    for arguments in (
        ["expression", str(tmp_path / "values.csv"), *out],
        ["snps", str(tmp_path / "x.bed"), "--reference", "a2", *out],
    ):
        assert main(arguments) == USER_ERROR, arguments
        printed = capfd.readouterr()
        assert "CANARY" not in printed.out + printed.err, printed.err
    assert search(tmp_path)  # the search itself finds them in the sources
