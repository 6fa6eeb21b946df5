"""The console command: names, help, errors in one line, exit statuses, completion, and what it imports."""

import subprocess
import sys
import types
from argparse import ArgumentParser, Namespace
from pathlib import Path

import click
import pytest

import preprocess.__main__ as module_door
from mrmfast import cli
from mrmfast.cli.group import ModuleCommand
from mrmfast.command import DAMAGED, DONE, INTERRUPTED, SKIPPED, USER_ERROR, Entry, load
from mrmfast.errors import UserError
from preprocess.commands import COMMANDS
from tests.helpers.common import ROOT, write_dataset

HEAVY = ["torch", "numpy", "zarr", "deepspeed", "timm", "cv2", "pandas", "pydantic", "yaml", "matplotlib", "obstore"]


@pytest.mark.parametrize(
    "code",
    [
        "import mrmfast",
        "from mrmfast.cli import main; main(['--help']); main(['--version'])",
        "from mrmfast.cli import main; main(['preprocess', '--help']); main(['train', '--help'])",
        "from mrmfast.cli import main; main(['train', '--config', 'no_such']); main(['completion', 'bash'])",
    ],
)
def test_answers_that_need_no_library_import_none(code):
    """A time would depend on the machine; what decides it is what is imported."""
    report = f"{code}\nimport sys; print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_the_arguments_that_the_module_declares(name, capsys):
    parser = ArgumentParser(add_help=False)
    load(COMMANDS[name].target).add_arguments(parser)
    assert cli.main(["preprocess", name, "--help"]) == DONE
    page = capsys.readouterr().out
    for action in parser._actions:
        for text in action.option_strings or [action.metavar]:
            assert text in page
    assert f"Examples:\n    mrmfast preprocess {name} " in page


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_valid_command_lines(name):
    for example in COMMANDS[name].examples:
        words = example.removeprefix("{program} ").split()
        arguments = Namespace()
        module_door.parse(words, arguments)
        assert arguments.command == name


def test_the_list_of_commands_is_the_table(capsys):
    assert cli.main(["--help"]) == DONE
    page = capsys.readouterr().out
    for name, entry in cli.COMMANDS.items():
        assert f"  {name} " in page
        assert entry.summary in " ".join(page.split())
    assert cli.main(["preprocess", "--help"]) == DONE
    listed = capsys.readouterr().out.split("Commands:\n")[1]
    assert [line.split()[0] for line in listed.splitlines() if line[:3].strip()] == [
        n for n in COMMANDS if n != "check"
    ]


@pytest.fixture
def echo(monkeypatch):
    """A command ``echo`` in the table, whose module records what it is called with."""
    module = types.ModuleType("tests_echo_command")
    calls = []

    def add_arguments(parser):
        parser.add_argument("source", metavar="SRC", type=Path, help="100 %% of it")
        parser.add_argument("--number", type=int, default=3, choices=(3, 4), help="a number (default %(default)s)")
        parser.add_argument("--out", metavar="DATASET", type=Path, required=True)
        parser.add_argument("--flag", action="store_true")
        parser.add_argument("--several", nargs="+")

    def run(arguments):
        calls.append(arguments)
        if isinstance(module.result, BaseException):
            raise module.result
        return module.result

    module.add_arguments, module.run, module.calls, module.result = add_arguments, run, calls, None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "echo", Entry(module.__name__, "repeat", ("{program} echo SRC --out X",)))
    return module


def test_arguments_reach_the_module_as_its_parser_reads_them(echo):
    words = ["--flag", "a b.jpg", "--number", "4", "--out=x", "--several", "1", "2"]
    assert cli.main(["echo", *words]) == DONE
    assert echo.calls == [Namespace(source=Path("a b.jpg"), number=4, out=Path("x"), flag=True, several=["1", "2"])]


@pytest.mark.parametrize(
    ("result", "status", "message"),
    [
        (None, DONE, ""),
        (DAMAGED, DAMAGED, ""),
        (SKIPPED, SKIPPED, ""),
        (UserError("x.bed: no such file; give one"), USER_ERROR, "mrmfast: error: x.bed: no such file; give one\n"),
        (OSError(28, "full"), USER_ERROR, "no space left on device; free space"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
    ],
)
def test_exit_statuses(echo, capsys, monkeypatch, result, status, message):
    echo.result = result
    monkeypatch.setitem(module_door.COMMANDS, "echo", cli.COMMANDS["echo"])
    for door in (cli.main, module_door.main):
        assert door(["echo", "a", "--out", "b"]) == status
        error = capsys.readouterr().err.strip("\n")
        assert message.strip("\n") in error
        assert error.count("\n") == 0


def test_a_defect_keeps_its_traceback(echo):
    echo.result = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        cli.main(["echo", "a", "--out", "b"])


def test_check_finds_damage(tmp_path, capsys):
    dataset = write_dataset(tmp_path / "ds", genetics=False)
    assert cli.main(["check", str(dataset)]) == DONE
    next(dataset.glob("images/*.idx")).write_text("v1.2 0\n")
    assert cli.main(["check", str(dataset)]) == DAMAGED
    assert "damaged: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["trian"], "did you mean train?"),
        (["preprocess", "fudnus"], "did you mean fundus?"),
        (["preprocess", "xyzzy"], "see mrmfast preprocess --help"),
        (["--verson"], "did you mean --version?"),
        (["train"], "missing option '--config'; see mrmfast train --help"),
        (["train", "--confg", "demo"], "did you mean --config?"),
        (["train", "--config", "ukb_bas"], "did you mean ukb_base?"),
        (["train", "--config", "demo", "--gpus", "none"], "see mrmfast train --help"),
        (["echo", "a"], "required: --out; see mrmfast echo --help"),
        (["echo", "a", "--out", "b", "--number", "7"], "see mrmfast echo --help"),
        (["echo", "a", "--out", "b", "--bogus"], "unrecognized arguments: --bogus; see mrmfast echo --help"),
    ],
)
def test_errors_of_usage_are_one_line_with_a_remedy(echo, capsys, words, remedy):
    assert cli.main(words) == USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("mrmfast: error: ")
    assert error.count("\n") == 1
    assert remedy in error


def test_a_missing_library_is_named_with_the_remedy(echo, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "echo", Entry("tests.cli.no_such_library_here", "repeat"))
    assert cli.main(["echo"]) == USER_ERROR
    assert "pip install 'mrmfast[preprocess]'" in capsys.readouterr().err
    # A module of ours that is not there is a defect, not a missing library.
    monkeypatch.setitem(cli.COMMANDS, "echo", Entry("mrmfast.no_such_module", "repeat"))
    with pytest.raises(ImportError):
        cli.main(["echo"])


def complete(words, monkeypatch, capsys):
    monkeypatch.setenv("_MRMFAST_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    with pytest.raises(SystemExit):
        cli.main([])
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["mrmfast", "pre"], "plain,preprocess"),
        (["mrmfast", "preprocess", "fun"], "plain,fundus"),
        (["mrmfast", "preprocess", "snps", "--re"], "plain,--reference"),
        (["mrmfast", "preprocess", "snps", "--reference", "ref-f"], "plain,ref-first"),
        (["mrmfast", "train", "--config", "ukb_b"], "plain,ukb_base"),
        (["mrmfast", "echo", "--out", "x", "--fl"], "plain,--flag"),
        (["mrmfast", "echo", "--number", ""], "plain,4"),
        (["mrmfast", "echo", "--out", "da"], "file,da"),
    ],
)
def test_completion(echo, words, offered, monkeypatch, capsys):
    assert offered in complete(words, monkeypatch, capsys)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_calls_this_program(shell, capsys):
    assert cli.main(["completion", shell]) == DONE
    assert f"_MRMFAST_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_without_arguments_the_help_is_shown(capsys):
    assert cli.main([]) == USER_ERROR
    assert "Commands:" in capsys.readouterr().err


def test_a_command_of_the_table_may_be_a_click_command(monkeypatch, capsys):
    module = types.ModuleType("tests_click_command")
    module.hello = click.command()(lambda: print("hello"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "hello", Entry("tests_click_command:hello", "greet"))
    assert cli.main(["hello"]) == DONE
    assert capsys.readouterr().out == "hello\n"


def test_module_commands_are_not_imported_for_the_list(monkeypatch, capsys):
    monkeypatch.setattr(ModuleCommand, "module", lambda self: pytest.fail("imported"))
    assert cli.main(["preprocess", "--help"]) == DONE
