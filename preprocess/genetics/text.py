"""Text tables of users: any line ends, a byte order mark, blank lines, any white space between columns."""

from __future__ import annotations

from pathlib import Path

from mrmfast.errors import UserError

NOT_UTF8 = (
    "is not text in UTF-8; convert it (iconv -f latin1 -t utf-8, or -f utf-16 for text of Excel), or copy it again if "
    "it is damaged"
)
# A spreadsheet runs a cell that begins with one of these as a formula (OWASP, CSV injection); "'" marks a marked cell.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "'")


def decode(data: bytes, path: Path) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises
    ------
    UserError
        The bytes are not UTF-8, or hold NUL bytes.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {NOT_UTF8}") from error
    if "\0" in text:
        raise UserError(f"{path}: {NOT_UTF8}")
    return text


def read_lines(path: Path, remedy: str) -> list[tuple[int, str]]:
    """Read the lines of a text file, without blank lines at its end.

    Parameters
    ----------
    path : Path
    remedy : str
        What to do if the file is absent or cannot be read.

    Returns
    -------
    list of (int, str)
        Line number from 1, and the line without its end.

    Raises
    ------
    UserError
        The file is absent, cannot be read, or is not text in UTF-8.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist, so it cannot be read; {remedy}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); {remedy}") from error
    lines = decode(data, path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return list(enumerate(lines, start=1))


def read_rows(path: Path, remedy: str) -> list[tuple[int, str]]:
    """Read the lines of a text file that are not blank; see :func:`read_lines`."""
    return [(number, line) for number, line in read_lines(path, remedy) if line.strip()]


def split_fields(line: str, count: int) -> list[str]:
    r"""Split a line at any white space, as PLINK does; at tabs if that gives `count` fields, some of them blank.

    Example: ``"A B 0 0 1\t-9"`` has six fields; so has ``"A\t\t0\t0\t1\t-9"``, whose second field is blank.
    """
    fields = line.split()
    if len(fields) != count and "\t" in line:
        separated = [field.strip() for field in line.split("\t")]
        if len(separated) == count:
            return separated
    return fields


def plain_cell(text: str) -> str:
    """Return a cell that no spreadsheet runs as a formula: ``'`` precedes a cell that begins like one.

    Remove one leading ``'`` to read the cell back.
    """
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
