"""Every golden value of the published implementations, against our code in float64.

One test per case of each JSON file of the folder that ``MRMFAST_OFFICIAL`` names (`tests/helpers/official`). Further
files and cases of the same form run without a change. A method without a runner fails; so does a value that no runner
reads.
"""

import copy

import pytest

from tests.helpers import official

FILES = official.files()
CASES = [
    pytest.param(file, case, id=f"{name}-{case['name']}") for name, file in FILES.items() for case in file["cases"]
]
FACTS = [pytest.param(file, id=name) for name, file in FILES.items() if official.numeric_facts(file)]


def problems(checks):
    unread = [f"{line}: nothing of ours was compared with it" for line in checks.unread()]
    return checks.failures + unread


@pytest.mark.parametrize(("file", "case"), CASES)
def test_case(file, case):
    checks = official.runner(file["method"]).run(file, case)
    assert not problems(checks), "\n".join(problems(checks))


@pytest.mark.parametrize("file", FACTS)
def test_facts(file):
    """Schedules and other numbers of the whole file."""
    checks = official.runner(file["method"]).facts(file)
    assert checks.expected == official.numeric_facts(file)
    assert not problems(checks), "\n".join(problems(checks))


def first_number(entry, path=()):
    """The path of a value that a runner has to compare."""
    return next(path for path in official.leaves(entry, path) if "note" not in path)


def test_a_changed_value_a_further_value_and_an_unknown_method_fail():
    file = FILES["mae"] if "mae" in FILES else next(iter(FILES.values()))
    case = copy.deepcopy(file["cases"][0])
    case["expected"]["a further value"] = 1.5
    assert "a further value" in "\n".join(problems(official.runner(file["method"]).run(file, case)))
    case = copy.deepcopy(file["cases"][0])
    path = first_number(case["expected"])
    entry = case["expected"]
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] += 1
    assert " / ".join(path) in "\n".join(problems(official.runner(file["method"]).run(file, case)))
    with pytest.raises(LookupError, match="no runner"):
        official.runner("A method that nobody wrote")
