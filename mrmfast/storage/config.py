"""Section ``data.fetch`` of a config: how a dataset is fetched from an object store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le
from pydantic import FiniteFloat

# Larger values are typing errors, and clients overflow.
MOST_SECONDS, MOST_GIGABYTES, MOST_REQUESTS = 1e6, 1e9, 4096


@dataclass(frozen=True)
class FetchConfig:
    """Settings of downloads from an object store.

    Attributes
    ----------
    requests : int
        Maximum number of concurrent requests, per rank.
    stall : float
        Seconds without a byte after which a request is abandoned and retried.
    deadline : float
        Seconds without any progress on a shard after which training stops with an error.
    cache_gb : float, optional
        Limit of the downloaded shards on this node, GB (1e9 bytes); the least recently used shards are evicted. No
        limit by default.
    verify : bool
        Hash cached shards again at first use by each rank (they are hashed when downloaded, and after each boot).
    verify_local : bool
        Hash the shards of a local dataset at first use on a node, once per boot; false compares only their lengths.
        The first batches take as long as the disk needs to read the dataset once, or about 2 s per GB and core.
    """

    requests: Annotated[int, Ge(1), Le(MOST_REQUESTS)] = 16
    stall: Annotated[FiniteFloat, Gt(0), Le(MOST_SECONDS)] = 10.0
    deadline: Annotated[FiniteFloat, Gt(0), Le(MOST_SECONDS)] = 300.0
    cache_gb: Annotated[FiniteFloat, Gt(0), Le(MOST_GIGABYTES)] | None = None
    verify: bool = False
    verify_local: bool = True
