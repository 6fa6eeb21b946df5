"""The participants of the simulated cohort, and the seeded random streams.

Every random number comes from :func:`stream`. The key of a stream is the seed, the purpose and, if applicable, the
variant or participant. A vector over participants is always filled in participant order from a new stream, so the first
*n* entries do not depend on its length: participant *i* has the same genome, traits and images in a cohort of 64 and in
a cohort of 100,000.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass

import numpy as np

from mrmfast.arithmetic import ceil_div
from mrmfast.errors import UserError

# SNPs of UK Biobank's genotyping array on chromosomes 1-22 (784,256 in all).
UKB_ARRAY_COUNTS = (
    63487, 61966, 52300, 47443, 46314, 53695, 42722, 38591, 34310, 38308, 40824,
    37302, 26806, 25509, 24467, 28960, 28835, 21962, 26186, 19959, 11342, 12968,
)  # fmt: skip

# Lengths of chromosomes 1-22 in base pairs, GRCh38 (Genome Reference Consortium).
CHROMOSOME_LENGTHS = (
    248956422, 242193529, 198295559, 190214555, 181538259, 170805979, 159345973, 145138636, 138394717, 133797422,
    135086622, 133275309, 114364328, 107043718, 101991189, 90338345, 83257441, 80373285, 58617616, 64444167,
    46709983, 50818468,
)  # fmt: skip

EYES = ("left", "right")
BAD_KINDS = ("black", "overexposed", "not_fundus")

# One image of each bad kind in every 32 participants (64 images): 1.56 % each. Each kind occurs in cohorts of at least
# 32 participants, and the draw does not depend on the cohort's size.
_BAD_BLOCK = 32

_FIRST_ID = 1_000_000
_ID_PRIME = 4_999_999
MAX_PARTICIPANTS = 500_000


@dataclass(frozen=True)
class Settings:
    """The settings that determine the bytes: two runs with equal settings write equal files."""

    participants: int
    seed: int
    snps: int
    scores: int
    genes: int

    def __post_init__(self) -> None:
        limits = {
            "participants": (1, MAX_PARTICIPANTS),
            "seed": (0, 2**31 - 1),
            "snps": (220, 8_000_000),
            "scores": (3, 10_000),
            "genes": (4, 20_000),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"--{name} must be an integer from {low} to {high} (got {value})")

    def to_dict(self) -> dict[str, int]:
        """Return the settings as plain JSON values."""
        return asdict(self)


def stream(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """Open an independent random stream for one purpose.

    Parameters
    ----------
    seed
        The run's seed.
    purpose
        Purpose of the stream, a part of its key.
    keys
        Further parts of the key, such as chromosome and variant index; each >= 0.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *keys])


def sparse_hits(rng: np.random.Generator, chance: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the successes of Bernoulli trials; the cost is proportional to the successes, not to the trials.

    Gaps between successes are geometric, drawn by inversion. The gap and the spare number of one success are drawn
    together, so the successes below *n* are the same for every ``size`` >= *n*.

    Returns
    -------
    positions
        Increasing indices of the successes, int64, shape (hits,), each in [0, size).
    spare
        A uniform number in [0, 1) for each hit, shape (hits,).
    """
    expected = chance * size
    count = int(expected + 6 * np.sqrt(expected)) + 8
    positions, spare, last = [], [], -1
    while last < size:
        draws = rng.random((count, 2))
        gaps = np.floor(np.log1p(-draws[:, 0]) / np.log1p(-chance)).astype(np.int64) + 1
        positions.append(last + np.cumsum(gaps))
        spare.append(draws[:, 1])
        last = int(positions[-1][-1])
    joined = np.concatenate(positions)
    inside = joined < size
    return joined[inside], np.concatenate(spare)[inside]


def participant_ids(seed: int, participants: int) -> np.ndarray:
    """Return seven-digit ids like those of UK Biobank, int64, shape (participants,).

    An id is the fifth power of an affine map modulo a prime p, where 5 does not divide p - 1. The ids have no
    collisions and no visible order. The id of participant *i* depends only on the seed and *i*.
    """
    rng = stream(seed, "ids")
    factor, offset = int(rng.integers(1, _ID_PRIME)), int(rng.integers(_ID_PRIME))
    base = (np.arange(participants, dtype=np.int64) * factor + offset) % _ID_PRIME
    fourth = (base * base % _ID_PRIME) ** 2 % _ID_PRIME
    return _FIRST_ID + base * fourth % _ID_PRIME


def divide_snps(total: int) -> list[int]:
    """Divide ``total`` SNPs over chromosomes 1-22 as UK Biobank's array does (largest remainders; 784,256 is exact)."""
    whole = sum(UKB_ARRAY_COUNTS)
    counts = [total * share // whole for share in UKB_ARRAY_COUNTS]
    by_remainder = sorted(range(22), key=lambda chromosome: -(total * UKB_ARRAY_COUNTS[chromosome] % whole))
    for chromosome in by_remainder[: total - sum(counts)]:
        counts[chromosome] += 1
    return counts


def bad_photographs(seed: int, participants: int) -> dict[tuple[int, str], str]:
    """Return the bad images: (participant index, eye) -> kind, in participant order."""
    chosen: dict[tuple[int, str], str] = {}
    for block in range(ceil_div(participants, _BAD_BLOCK)):
        picks = stream(seed, "bad photographs", block).permutation(2 * _BAD_BLOCK)[: len(BAD_KINDS)]
        for pick, kind in sorted(zip(picks.tolist(), BAD_KINDS, strict=True)):
            index = block * _BAD_BLOCK + pick // 2
            if index < participants:
                chosen[index, EYES[pick % 2]] = kind
    return chosen
