"""UK Biobank fields of the simulated participants (sex, age, blood pressure, smoking, body mass index)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from preprocess.simulate.cohort import stream
from preprocess.simulate.files import write_table

# Sex (0 female, 1 male), age at recruitment (years), diastolic and systolic blood pressure (mmHg, two readings),
# smoking (0 never, 1 previous, 2 current, -3 prefer not to answer), body mass index (kg/m2).
FIELDS = (
    "31-0.0", "21022-0.0", "4079-0.0", "4079-0.1", "4080-0.0", "4080-0.1", "20116-0.0", "21001-0.0",
)  # fmt: skip
# Missing shares, roughly UK Biobank's; the second reading is missing more often than the first.
_MISSING = {
    "4079-0.0": 0.06, "4079-0.1": 0.09, "4080-0.0": 0.06, "4080-0.1": 0.09, "20116-0.0": 0.006, "21001-0.0": 0.01,
}  # fmt: skip


def draw_age(seed: int, participants: int) -> np.ndarray:
    """Return age at recruitment in whole years, 40 to 70, skewed to high ages, float64, shape (participants,)."""
    return np.floor(40 + 31 * stream(seed, "age").random(participants) ** 0.85)


def draw_phenotypes(
    seed: int, age: np.ndarray, vessel_width: np.ndarray, vessel_tortuosity: np.ndarray
) -> dict[str, np.ndarray]:
    """Return field name -> values, float64, NaN if missing, shape (N,).

    Narrow and tortuous retinal vessels are associated with high blood pressure (Wong and Mitchell, N Engl J Med 2004).
    This association links the images to these fields.
    """
    people = len(age)
    normal = {name: stream(seed, "phenotype", n).standard_normal(people) for n, name in enumerate(("bmi", "bp", "dbp"))}
    sex = (stream(seed, "sex").random(people) < 0.46).astype(float)
    bmi = np.round(np.exp(np.log(26.8) + 0.01 * sex + 0.0015 * (age - 56) + 0.16 * normal["bmi"]), 4)
    systolic = (
        138 + 0.75 * (age - 56) + 5 * sex + 0.7 * (bmi - 27)
        - 35 * (vessel_width - 1) + 7 * (vessel_tortuosity - 1) + 13 * normal["bp"]
    )  # fmt: skip
    diastolic = 82 + 0.42 * (systolic - 138) + 1.5 * sex - 0.2 * (age - 56) + 6 * normal["dbp"]
    smoking_draw = stream(seed, "smoking").random(people)
    current = 0.09 + 0.04 * sex
    smoking = np.where(smoking_draw < current, 2, np.where(smoking_draw < current + 0.34, 1, 0)).astype(float)
    smoking[smoking_draw > 0.985] = -3

    def reading(pressure: np.ndarray, key: int, low: float, high: float) -> np.ndarray:
        error = stream(seed, "reading", key).standard_normal(people)
        return np.clip(np.round(pressure + 4 * error - 1.5 * (key % 2)), low, high)

    fields = {
        "31-0.0": sex,
        "21022-0.0": age,
        "4079-0.0": reading(diastolic, 0, 36, 148),
        "4079-0.1": reading(diastolic, 1, 36, 148),
        "4080-0.0": reading(systolic, 2, 65, 255),
        "4080-0.1": reading(systolic, 3, 65, 255),
        "20116-0.0": smoking,
        "21001-0.0": np.clip(bmi, 14, 60),
    }
    for number, (name, share) in enumerate(_MISSING.items()):
        fields[name][stream(seed, "phenotype missing", number).random(people) < share] = np.nan
    return fields


def write_phenotypes(path: Path, ids: np.ndarray, fields: dict[str, np.ndarray]) -> None:
    """Write ``eid`` and the fields, one row per participant in ascending order of id; missing values are empty."""

    def rows() -> Iterator[list[str]]:
        for index in np.argsort(ids).tolist():
            values = (float(fields[name][index]) for name in FIELDS)
            yield [str(ids[index]), *("" if np.isnan(v) else f"{v:.6g}" for v in values)]

    write_table(path, ["eid", *FIELDS], rows())
