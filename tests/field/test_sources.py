"""Which files of a folder are read: system folders, links, special files, other kinds, names that are not UTF-8.

The right files are counted by the tests themselves: they make each folder.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mrmfast.errors import UserError
from mrmfast.formats.sample_table import read_sample_table
from preprocess.__main__ import main
from preprocess.images.listing import Listing, list_files
from preprocess.images.sources import IMAGE_SUFFIXES
from tests.helpers.source_folders import write_photographs


def listing(root: Path) -> Listing:
    return list_files(root, IMAGE_SUFFIXES, lambda path: "masks" in path.parts)


def touch(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.encode())
    return root


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("@eaDir/7_left.jpg", "@eaDir"),
        (".ipynb_checkpoints", "hidden folder"),
        (".Trash-1000/files", "hidden folder"),
        (".@__thumb", "hidden folder"),
        ("#recycle/old", "#recycle"),
        ("__MACOSX/x", "__MACOSX"),
        ("lost+found", "lost+found"),
        ("$RECYCLE.BIN/S-1-5", "$RECYCLE.BIN"),
        ("$Recycle.Bin", "$Recycle.Bin"),
        ("@Recycle", "@Recycle"),
        ("#snapshot/daily", "#snapshot"),
        ("System Volume Information", "System Volume Information"),
        ("Network Trash Folder", "Network Trash Folder"),
    ],
)
def test_system_folders_are_skipped_and_counted(tmp_path: Path, folder: str, told: str) -> None:
    touch(tmp_path, "7_left.jpg", "a/8_left.JPG", f"{folder}/9_left.jpg", f"a/{folder}/THUMB_M.jpg")
    files = listing(tmp_path)
    assert files.files == ["7_left.jpg", "a/8_left.JPG"]
    assert files.skipped == {told: 2}


def test_hidden_and_system_files_and_other_kinds_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "1_left.jpg", "._1_left.jpg", ".2_left.png", "Thumbs.db", "desktop.ini", "notes.txt", "masks/1.png")
    touch(tmp_path, "c.GIF", "d.heic", "e.HEIC", "f.dcm", "g.svs", "h.avif")
    files = listing(tmp_path)
    assert files.files == ["1_left.jpg"]
    assert files.masks == 1
    kinds = {".avif": 1, ".gif": 1, ".heic": 2, ".dcm": 1, ".svs": 1}
    assert files.skipped == {"hidden file": 2, "Thumbs.db": 1, "desktop.ini": 1, **kinds}


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    store = touch(tmp_path / "store", "21015/7_21015_0_0.png", "21016/7_21016_0_0.png", "21016/deep/8_21016_0_0.png")
    source = touch(tmp_path / "src", "left/9_21015_0_0.png")
    (source / "right").symlink_to(store / "21016")
    (source / "again").symlink_to(store / "21016" / "deep")
    (source / "twice").symlink_to(source / "left")
    files = listing(source)
    assert [file.rpartition("/")[2] for file in files.files] == [
        "8_21016_0_0.png",
        "9_21015_0_0.png",
        "7_21016_0_0.png",
    ]
    assert "left/9_21015_0_0.png" in files.files
    assert files.skipped == {"file or folder reached again by a link": 2}


def test_loops_end(tmp_path: Path) -> None:
    source = touch(tmp_path / "src", "a/1_left.jpg", "b/2_left.jpg")
    (source / "a" / "self").symlink_to(source)
    (source / "a" / "up").symlink_to("..")
    (source / "b" / "out").symlink_to(tmp_path)
    (source / "a" / "b").symlink_to(source / "b")
    (source / "b" / "a").symlink_to(source / "a")
    (source / "ring").symlink_to(source / "ring")
    files = listing(source)
    assert files.files == ["a/1_left.jpg", "b/2_left.jpg"]
    assert files.skipped == {
        "broken link": 1,
        "file or folder reached again by a link": 2,
        "link to a folder around SRC": 3,
    }


def test_the_same_file_by_two_links_is_one_image(tmp_path: Path) -> None:
    store = touch(tmp_path / "store", "x", "y.png")
    source = touch(tmp_path / "src", "3_left.jpg")
    (source / "1_left.jpg").symlink_to(store / "x")
    (source / "2_left.jpg").symlink_to(store / "x")
    (source / "4_left.png").symlink_to(store / "y.png")
    (source / "5_left.jpg").symlink_to(store / "gone.jpg")
    os.link(source / "3_left.jpg", source / "6_left.jpg")
    files = listing(source)
    assert files.files == ["1_left.jpg", "3_left.jpg", "4_left.png"]
    assert files.skipped == {"broken link": 1, "file or folder reached again by a link": 2}


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe would wait for ever, /dev/zero would fill the memory; hence a process of its own with a time limit."""
    source = write_photographs(tmp_path / "src", ["1_left.jpg"])
    os.mkfifo(source / "8_left.jpg")
    (source / "9_left.jpg").symlink_to("/dev/zero")
    (source / "10_left.jpg").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(source)
        server.bind("11_left.jpg")
        os.chdir(here)
        command = [
            sys.executable,
            "-m",
            "preprocess",
            "fundus",
            str(source),
            "--out",
            str(tmp_path / "ds"),
            "--workers",
            "1",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "skipped below SRC: pipe, socket or device (4)" in done.stdout
    assert read_sample_table(str(tmp_path / "ds")).participant.tolist() == ["1"]


@pytest.mark.parametrize(
    "name", [b"Jos\xe9_OD.jpg", b"\xc3\x28/1_left.jpg", "患者".encode("gbk") + b"/1_OD.png", b"a\xff.TIF"]
)
def test_names_that_are_not_utf8_are_one_line_before_any_work(
    tmp_path: Path, name: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_photographs(tmp_path / "src", ["1_left.jpg", "2_left.jpg"])
    path = os.path.join(os.fsencode(source), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    shutil.copy(os.fsencode(source / "1_left.jpg"), path)
    assert main(["fundus", str(source), "--out", str(tmp_path / "ds")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert name.decode("utf-8", "backslashreplace") in message
    assert "rename it, e.g. with convmv" in message
    assert not (tmp_path / "ds").exists()


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "1_left.jpg", "closed/2_left.jpg")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"closed: cannot be read \(Permission denied\)"):
        listing(tmp_path)


def test_nothing_to_read_names_what_is_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "a.gif", "@eaDir/x.jpg")
    with pytest.raises(UserError, match=r"no image files .*; skipped: .gif \(1\), @eaDir \(1\)"):
        listing(tmp_path)


def test_a_nas_and_links_give_the_right_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: 14 images of 7 participants from the NAS; the linked right eyes were missing."""
    people = [str(9000001 + n) for n in range(4)]
    nas = write_photographs(tmp_path / "nas", [f"{p}_left_0.jpg" for p in people])
    write_photographs(
        nas, [f"@eaDir/{p}_left_0.jpg/SYNOPHOTO_THUMB_{size}.jpg" for p in people for size in ("M", "XL")]
    )
    write_photographs(nas, [".ipynb_checkpoints/9000099_left_0.jpg", ".Trash-1000/files/9000099_left_0.jpg"])
    store = write_photographs(
        tmp_path / "store", [f"{field}/{p}_{field}_0_0.png" for field in (21015, 21016) for p in people]
    )
    links = tmp_path / "links"
    links.mkdir()
    for name, field in (("left", "21015"), ("right", "21016")):
        (links / name).symlink_to(store / field)
    options = ["--size", "32", "--workers", "1"]
    assert main(["fundus", str(nas), "--out", str(tmp_path / "a"), *options]) == 0
    assert "skipped below SRC: @eaDir (1), hidden folder (2)" in capsys.readouterr().out
    assert main(["fundus", str(links), "--out", str(tmp_path / "b"), *options]) == 0
    assert sorted(read_sample_table(str(tmp_path / "a")).participant) == people
    assert sorted(read_sample_table(str(tmp_path / "b")).participant) == sorted(2 * people)
    counts = json.loads((tmp_path / "a/reports/fundus.json").read_text())["counts"]
    assert counts["skipped"] == {"@eaDir": 1, "hidden folder": 2}
