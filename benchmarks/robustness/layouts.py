"""Who is in an image? Random layouts of folders with known people, and how the paths are understood.

``python -m benchmarks.robustness.layouts --json FILE`` tries every combination of ways to name people, folders and
files. A layout is right, refused, each image a participant (and told), split (one person is several participants, which
is not told) or merged (two people are one participant). The last two must not occur.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections import Counter, defaultdict
from pathlib import Path

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from preprocess.images.layouts import CLASSES, OWN
from preprocess.images.participants import ParticipantRule

PEOPLE = {
    "eid": ["1000012", "1000023", "1000034", "1000045"],
    "short": ["1", "2", "3", "12"],
    "padded": ["001", "002", "003", "012"],
    "patient": ["Patient001", "Patient002", "Patient003", "Patient012"],
    "p": ["P001", "P002", "P003", "P012"],
    "p1": ["p1", "p2", "p3", "p12"],
    "bids": ["sub-01", "sub-02", "sub-03", "sub-12"],
    "name": ["John Doe", "Mary", "José", "Li Wei"],
    "study": ["AB1234", "AB1235", "CD0001", "CD0002"],
    "subject": ["S01", "S02", "S03", "S12"],
    "years": ["2001", "2002", "2003", "2012"],
    "hash": ["3f2a9c10", "77bb01ce", "90ab12cd", "0a1b2c3d"],
    "tcga": ["TCGA-02-0001", "TCGA-02-0003", "TCGA-06-0001", "TCGA-06-0125"],
    "site": ["01-001", "01-002", "02-001", "02-002"],
    "unicode": ["١٢٣", "١٢٤", "١٢٥", "١٣٠"],
}
FOLDERS = [
    "",
    "{p}",
    "{p}/{v}",
    "{v}/{p}",
    "{p}/{e}",
    "{e}/{p}",
    "{e}",
    "{v}",
    "{c}",
    "{c}/{p}",
    "{p}/{c}",
    "{t}",
    "{t}/{c}",
    "{t}/{p}",
    "{s}",
    "{s}/{p}",
    "{s}/{p}/{v}/{e}",
    "images/{p}",
    "{p}/images",
    "{t}/{c}/{p}",
    "{b}",
    "{b}/{p}",
]
NAMES = [
    "{p}_{e}",
    "{e}",
    "{p}-{e}",
    "{p}_{n}",
    "{n}",
    "img{n}",
    "{e}_{n}",
    "{p}_{e}_{n}",
    "{p}_{v}_{e}",
    "IMG_{g}",
    "{n}_{e}",
    "img_{n}_{e}",
    "{p}{e}",
    "{p}",
    "scan_{e}_{n}",
    "{e}_{p}",
    "{r}_{n}",
    "{p}_21015_{n}_0",
    "{v}_{p}_{e}",
    "{v}_{n}_{e}",
    "{s}_{p}_{e}",
    "{p}_{v}",
    "{p}_{g}",
    "{n}{e}",
    "x{r}y{n}",
]
CHOICES = {
    "e": [("left", "right"), ("L", "R"), ("OD", "OS"), ("od", "os")],
    "v": [("2019-01-03", "2020-05-06"), ("visit1", "visit2"), ("baseline", "followup"), ("20190103", "20200506")],
    "c": [("class_a", "class_b"), ("0_healthy", "1_dr"), ("0", "1"), ("melanoma", "nevus"), ("foo", "bar")],
    "t": [("train", "test")],
    "s": [("siteA", "siteB"), ("oslo", "bergen"), ("1", "2"), ("Messidor1", "Messidor2"), ("Base11", "Base12")],
    "b": [("00", "01"), ("00000", "00001"), ("batch1", "batch2")],
}


def random_layout(rng: random.Random, people: list[str], folder: str, name: str) -> dict[str, str] | None:
    """Return path -> person; None if two people would have the same path."""
    values = {key: rng.choice(choices) for key, choices in CHOICES.items()}
    template = f"{folder}/{name}.jpg".lstrip("/")
    truth: dict[str, str] = {}
    numbers = itertools.count(1)
    for k, person in enumerate(rng.sample(people, rng.choice([2, 3, 4]))):
        fixed = {key: values[key][k % 2] for key in "stb"} | {"p": person, "r": k, "c": rng.choice(values["c"])}
        eyes = values["e"] if rng.random() < 0.8 else values["e"][:1]
        visits = values["v"] if "{v}" in template else values["v"][:1]
        counts = range(1, rng.choice([2, 3]) if "{n}" in template else 2)
        for e, v, n in itertools.product(eyes, visits, counts):
            path = template.format(**fixed, e=e, v=v, n=n, g=next(numbers))
            if truth.setdefault(path, person) != person:
                return None
    return truth


def verdict(truth: dict[str, str]) -> str:
    """Return how the paths are understood: right, refused, split and told, split, or merged."""
    try:
        participants = ParticipantRule().apply(sorted(truth))
    except UserError:
        return "refused"
    people_of, participants_of = defaultdict(set), defaultdict(set)
    for source in participants.sources:
        people_of[source.participant].add(truth[source.file])
        participants_of[truth[source.file]].add(source.participant)
    if any(len(people) > 1 for people in people_of.values()):
        return "merged"
    if any(len(several) > 1 for several in participants_of.values()):
        return "split and told" if {CLASSES, OWN} & participants.layouts.keys() else "split"
    return "right"


def main() -> None:
    """Try all combinations; print and write how many layouts have each verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    verdicts: Counter[str] = Counter()
    wrong = []
    for people, folder, name in itertools.product(PEOPLE, FOLDERS, NAMES):
        layout = random_layout(rng, PEOPLE[people], folder, name)
        if layout is not None:
            verdicts[verdict(layout)] += 1
            if verdict(layout) in ("merged", "split"):
                wrong.append({"people": people, "paths": f"{folder}/{name}", "verdict": verdict(layout)})
    result = {"seed": arguments.seed, "layouts": verdicts.total(), "verdicts": dict(verdicts), "wrong": wrong}
    print(json.dumps(result, indent=1))
    if arguments.json:
        with write_aside(arguments.json) as file:
            file.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
