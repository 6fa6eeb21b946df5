"""The end of a test run says what was skipped and why."""

import subprocess
import sys

from tests.helpers.common import ROOT


def test_skips_are_counted_by_reason(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.skipif(True, reason='no GPU')\n"
        "@pytest.mark.parametrize('n', range(3))\n"
        "def test_a(n): pass\n"
        "def test_b(): pytest.skip('no plink2')\n"
        "def test_c(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider"]
    command += ["-p", "tests.helpers.skips", f"--rootdir={tmp_path}", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if "4 skipped: what this machine lacks" in line)
    assert lines[start + 1 : start + 3] == ["    3  no GPU", "    1  no plink2"]
