"""The default number of decoding threads follows the machine."""

import os

import pytest

from mrmfast.data.threads import LOCAL_RANKS, MOST, decode_threads


@pytest.mark.parametrize(
    ("cores", "launcher", "expected"),
    [
        (2, {}, 2),
        (16, {}, MOST),
        (16, {"LOCAL_SIZE": "4"}, 4),
        (16, {"LOCAL_WORLD_SIZE": "8"}, 2),
        (16, {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 8),
        (4, {"LOCAL_SIZE": "8"}, 1),
        (16, {"LOCAL_SIZE": ""}, MOST),
    ],
)
def test_cores_are_shared_among_the_ranks_of_a_machine(monkeypatch, cores, launcher, expected):
    for name in LOCAL_RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))  # not os.cpu_count: containers
    assert decode_threads(None) == expected
    assert decode_threads(3) == 3
