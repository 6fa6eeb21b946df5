"""The image files below a folder: linked folders once each, no system folders, regular files only."""

from __future__ import annotations

import os
import stat
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mrmfast.errors import UserError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Folders that file servers, archives and desktops make beside the user's own: thumbnails, trash, snapshots.
SYSTEM_FOLDERS = _words(
    """
    @eadir @tmp @recycle @recently-snapshot @sharebin #recycle #snapshot ~snapshot __macosx lost+found
    $recycle.bin recycler recycled
    """
) | {"system volume information", "network trash folder", "temporary items"}
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"})
# Kinds of images that no command reads, or not every command: counted, so that nobody misses them unknowingly.
OTHER_SUFFIXES = _words(
    """
    .gif .dib .heic .heif .avif .jp2 .j2k .jpx .jxl .tga .psd .dcm
    .dicom .dng .cr2 .cr3 .nef .arw .orf .raf .svs .ndpi .mrxs .scn .vms .vmu .bif .svslide .czi .qptiff .fda
    .e2e
    """
)
HIDDEN_FOLDER, HIDDEN_FILE, NOT_REGULAR = "hidden folder", "hidden file", "pipe, socket or device"
REPEATED, BROKEN, LOOP = "file or folder reached again by a link", "broken link", "link to a folder around SRC"


@dataclass(frozen=True)
class Listing:
    """The files to process, and what is skipped.

    Attributes
    ----------
    files : list of str
        Sorted paths relative to the folder, with forward slashes.
    masks : int
        Number of skipped masks.
    skipped : dict of str to int
        What is skipped (a system folder's name, a suffix, or a reason) -> how many.
    """

    files: list[str]
    masks: int
    skipped: dict[str, int]


def list_files(root: Path, suffixes: tuple[str, ...], is_mask: Callable[[PurePosixPath], bool]) -> Listing:
    """List the files below a folder by suffix.

    Parameters
    ----------
    root : Path
    suffixes : tuple of str
        Lower case, with the dot; matched without regard to case.
    is_mask : callable
        Whether a relative path is a mask; masks are skipped.

    Raises
    ------
    UserError
        `root` does not exist, is not a folder, or holds no such file; a folder cannot be read; a name is not UTF-8.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; SRC is the folder with the image files")
    walk = _Walk(root, suffixes)
    walk.run()
    _check_names(root, walk.files)
    files = sorted(file for file in walk.files if not is_mask(PurePosixPath(file)))
    masks = len(walk.files) - len(files)
    skipped = dict(sorted(walk.skipped.items()))
    if not files:
        others = ({"masks": masks} if masks else {}) | skipped
        raise UserError(
            f"{root}: no image files ({', '.join(suffix[1:] for suffix in suffixes)}) in it"
            + (f"; skipped: {counted(others)}" if others else "; is SRC the right folder?")
        )
    return Listing(files, masks, skipped)


def counted(skipped: dict[str, int]) -> str:
    """Return counts as words: ``@eaDir (1), .ppm (3)``."""
    return ", ".join(f"{what} ({count})" for what, count in skipped.items())


def _check_names(root: Path, files: list[str]) -> None:
    broken = sorted(file for file in files if not _is_utf8(file))
    if broken:
        name = os.fsencode(broken[0]).decode("utf-8", "backslashreplace")
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(
            f"{root}/{name}: the name{more} is not UTF-8; rename it, e.g. with convmv -f latin1 -t utf8 -r --notest "
            f"{root} (-f gbk or cp1252 for names of other systems)"
        )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass
class _Walk:
    """One walk over a folder: all real folders first, then what links add to them."""

    root: Path
    suffixes: tuple[str, ...]
    files: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    links: deque[str] = field(default_factory=deque)
    visited: set[tuple[int, int] | str] = field(default_factory=set)

    def run(self) -> None:
        self._folder("")
        while self.links:
            self._link(self.links.popleft())

    def _link(self, name: str) -> None:
        target = self.root / name
        try:
            status = target.stat()
        except OSError:
            self.skipped[BROKEN] += 1
            return
        if not stat.S_ISDIR(status.st_mode):
            self._file(name, status)
        elif self.root.resolve().is_relative_to(target.resolve()):
            self.skipped[LOOP] += 1
        else:
            self._folder(name)

    def _folder(self, top: str) -> None:
        """List a folder and its real subfolders; links are kept for later, so that the real path is used."""
        pending = [top]
        while pending:
            folder = pending.pop()
            path = self.root / folder
            try:
                if self._is_repeated(path, path.stat()):
                    continue
                with os.scandir(path) as listed:
                    entries = sorted(listed, key=lambda entry: entry.name)
                subfolders = [name for entry in entries if (name := self._entry(entry, folder))]
            except OSError as error:
                raise UserError(
                    f"{path}: cannot be read ({error.strerror}); fix its permissions or the disk, or remove it from SRC"
                ) from error
            pending += reversed(subfolders)

    def _entry(self, entry: os.DirEntry[str], folder: str) -> str | None:
        """List an entry of a folder; return the path of a real subfolder."""
        name = f"{folder}/{entry.name}" if folder else entry.name
        key = entry.name.casefold()
        if entry.name.startswith(".") or key in SYSTEM_FOLDERS | SYSTEM_FILES:
            if key in SYSTEM_FILES or entry.is_dir():
                self.skipped[HIDDEN_FOLDER if entry.name.startswith(".") else entry.name] += 1
            elif PurePosixPath(key).suffix in self.suffixes:
                self.skipped[HIDDEN_FILE] += 1
        elif entry.is_symlink():
            self.links.append(name)
        elif entry.is_dir():
            return name
        else:
            self._file(name, entry.stat())
        return None

    def _file(self, name: str, status: os.stat_result) -> None:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in self.suffixes:
            if not stat.S_ISREG(status.st_mode):
                self.skipped[NOT_REGULAR] += 1
            elif not self._is_repeated(self.root / name, status):
                self.files.append(name)
        elif suffix in OTHER_SUFFIXES:
            self.skipped[suffix] += 1

    def _is_repeated(self, path: Path, status: os.stat_result) -> bool:
        """Whether a file or folder was listed by another path already; it counts once."""
        # Some network file systems have no inode numbers.
        identity = (status.st_dev, status.st_ino) if status.st_ino else str(path.resolve())
        if identity in self.visited:
            self.skipped[REPEATED] += 1
            return True
        self.visited.add(identity)
        return False
