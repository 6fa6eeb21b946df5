"""Write docs/reference/cli.md and docs/reference/config.md from the code that they describe.

Usage: ``python scripts/reference.py [--check]``; ``--check`` only compares, and ends with 1 where a page is outdated.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import click
import yaml
from docstring_parser import DocstringStyle, parse

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mrmfast import cli  # noqa: E402
from mrmfast.cli.group import TableGroup  # noqa: E402
from mrmfast.command import EXIT_STATUSES  # noqa: E402
from mrmfast.objectives import OBJECTIVES  # noqa: E402
from mrmfast.training.settings import TrainConfig  # noqa: E402

NOTE = "<!-- Written by scripts/reference.py from the code; do not edit. -->"

CLI_HEAD = f"""{NOTE}
# Commands

`mrmfast` comes with the package. `mrmfast COMMAND --help` shows what stands here.

- `python -m mrmfast` is the same, and `python -m preprocess COMMAND` is `mrmfast preprocess COMMAND`.
- `mrmfast train` starts one process per GPU. `deepspeed mrmfast/train.py --config FILE --resume auto|never`, `torchrun
  mrmfast/train.py ...` and `python -m mrmfast.train ...` train in the same way; the first two reach several nodes.
- Completion of commands, options and config names: put `eval "$(mrmfast completion bash)"` into `~/.bashrc` (`zsh` into
  `~/.zshrc`; `fish`: `mrmfast completion fish | source`).

## Exit status

| status | meaning |
|---|---|
"""

CONFIG_HEAD = f"""{NOTE}
# Config keys

Keys of the YAML file that `mrmfast train --config` reads, and of `key.path=value` on the command line. A config names
only the keys that differ from the default. `mrmfast train --config NAME --print-config` prints all of them with their
values; an unknown key or a value out of range is an error that names the key.
"""


def cli_page() -> str:
    """Return the page of the commands."""
    rows = "".join(f"| {status} | {text} |\n" for status, text in EXIT_STATUSES.items())
    context = click.Context(cli.root, info_name="mrmfast")
    return "\n".join([CLI_HEAD + rows, *_commands(cli.root, context)])


def _commands(group: TableGroup, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, TableGroup):
            yield from _commands(command, inner)
            continue
        yield f"## {inner.command_path}\n\n{inspect.cleandoc(command.help or '')}\n"
        yield f"```\n{inner.command_path} {' '.join(command.collect_usage_pieces(inner))}\n```\n"
        yield from _parameters(command, inner)
        if command.epilog:
            yield _epilog(command.epilog)


def _parameters(command: click.Command, context: click.Context) -> Iterator[str]:
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [(left, right) for left, right in filter(None, records) if left != "--help"]
    if rows:
        yield "| argument | meaning |\n|---|---|"
        yield "\n".join(f"| {_cell(f'`{left}`')} | {_cell(right)} |" for left, right in rows) + "\n"


def _epilog(epilog: str) -> str:
    examples, _, rest = epilog.replace("\b\nExamples:\n", "").partition("\n\n")
    return f"```bash\n{inspect.cleandoc('  ' + examples.strip())}\n```\n" + (f"\n{rest}\n" if rest else "")


def config_page() -> str:
    """Return the page of the config keys."""
    parts = [CONFIG_HEAD, *_section(TrainConfig, "")]
    return "\n".join(parts)


def _section(schema: Any, path: str) -> Iterator[str]:
    """Describe a dataclass: its keys in a table, then the sections below it."""
    source = Path(inspect.getsourcefile(schema) or "").relative_to(ROOT)
    texts = attribute_texts(schema)
    hints = get_type_hints(schema, include_extras=True)
    rows, below = [], []
    for field in dataclasses.fields(schema):
        hint, key = hints[field.name], f"{path}{field.name}"
        tag = next((mark for mark in getattr(hint, "__metadata__", ()) if hasattr(mark, "schema_of")), None)
        if tag is not None:
            below += [(tag.schema_of(name), f"{key}.", f"`{key}: {name}`") for name in OBJECTIVES]
        elif dataclasses.is_dataclass(hint):
            below.append((hint, f"{key}.", f"`{key}`"))
        elif not _is_tag(hint):
            if not texts.get(field.name):
                raise ValueError(f"{source}: {schema.__name__} does not document {field.name}")
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            rows.append(f"| `{key}` | {_cell(type_text(hint))} | `{_value(default)}` | {_cell(texts[field.name])} |")
    summary = _markdown(parse(schema.__doc__ or "", DocstringStyle.NUMPYDOC).short_description or "")
    yield f"{summary} Declared in `{source}`.\n"
    if rows:
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        yield "\n".join(rows) + "\n"
    for inner, inner_path, title in below:
        yield f"{'#' * min(2 + path.count('.'), 4)} {title}\n"
        yield from _section(inner, inner_path)


def attribute_texts(schema: Any) -> dict[str, str]:
    """Return the text of each attribute in a dataclass's NumPy docstring; ``a, b : float`` counts for both."""
    texts = {}
    for item in parse(schema.__doc__ or "", DocstringStyle.NUMPYDOC).params:
        for name in item.arg_name.split(","):
            texts[name.strip()] = _markdown(" ".join((item.description or "").split()))
    return texts


def type_text(hint: Any) -> str:
    """Say a type and its range in words: ``float, 0 to 1``, ``"train" or "test"``, ``integer, at least 1, or null``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = _range(arguments[1:])
        return type_text(arguments[0]) + (f", {bounds}" if bounds else "")
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return ", or ".join(type_text(choice) for choice in arguments)
    if origin is list:
        return f"list of {type_text(arguments[0])}"
    if origin is tuple:
        each = dict.fromkeys(type_text(choice) for choice in arguments)
        return f"list of {len(arguments)}, each: {' / '.join(each)}"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
    return str(names.get(hint) or getattr(hint, "__name__", hint))


def _range(marks: tuple[Any, ...]) -> str:
    """Say the bounds that annotated_types or pydantic put on a field."""
    marks = tuple(
        part for mark in marks for part in getattr(mark, "metadata", [mark])
    )  # pydantic's Field holds several
    bounds = {name: getattr(mark, name) for mark in marks for name in ("ge", "gt", "le", "lt") if hasattr(mark, name)}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    if bounds.keys() == {"ge", "le"}:
        return f"{bounds['ge']} to {bounds['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(f"{words[name]} {bound}" for name, bound in bounds.items())


def _is_tag(hint: Any) -> bool:
    """Whether a field is the ``name`` that chooses its section: one literal."""
    return get_origin(hint) is Literal and len(get_args(hint)) == 1


def _value(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip() if value != "" else '""'


def _markdown(text: str) -> str:
    """Turn the markup of docstrings into Markdown's."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def _cell(text: str) -> str:
    # Markdown would take <participant> for a tag; in backquotes it does not.
    quoted = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(quoted))


def pages() -> dict[Path, str]:
    """Return the pages by file."""
    folder = ROOT / "docs" / "reference"
    return {folder / "cli.md": cli_page(), folder / "config.md": config_page()}


def main() -> int:
    """Write the pages, or compare them; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare; exit status 1 where a page is outdated")
    check = parser.parse_args().check
    outdated = [
        (path, text) for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in outdated:
        print(f"{path.relative_to(ROOT)}: {'outdated; run python scripts/reference.py' if check else 'written'}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return int(check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
