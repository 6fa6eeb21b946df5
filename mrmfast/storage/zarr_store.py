"""A dataset's Zarr folders on an object store, through the same client, retries and checks as its shards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype

from mrmfast.errors import ClosedError
from mrmfast.storage.client import Client
from mrmfast.storage.object_store import MissingError

if TYPE_CHECKING:
    from mrmfast.storage.object_store import ByteRange

T = TypeVar("T")


class RemoteStore(Store):
    """Read-only store; the client's threads do the waiting.

    Parameters
    ----------
    client : Client
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, client: Client) -> None:
        super().__init__(read_only=True)
        self._client = client

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStore) and other._client is self._client

    async def _ask(self, call: Callable[..., T], *arguments: object) -> T:
        if self._client.closing.is_set():  # the pool's own error is no ClosedError
            raise ClosedError(f"{self._client.url}: closed")
        return await asyncio.wrap_future(self._client.pool.submit(call, *arguments))

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a value, or None where there is none."""
        part: ByteRange | None
        if byte_range is None:
            part = None
        elif isinstance(byte_range, RangeByteRequest):
            part = (byte_range.start, byte_range.end)
        elif isinstance(byte_range, OffsetByteRequest):
            part = {"offset": byte_range.offset}
        else:
            part = {"suffix": byte_range.suffix}
        try:
            data = await self._ask(self._client.read, key, part)
        except MissingError:
            return None
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of values, all at once."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Tell whether there is a value."""
        try:
            await self._ask(self._client.read, key, (0, 1))
        except MissingError:
            return False
        return True

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly below `prefix`, if the object store can list."""
        for name in await self._ask(self._client.names, prefix):
            yield name

    def list(self) -> AsyncIterator[str]:
        """Not offered: nothing that reads a dataset walks it."""
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Not offered: nothing that reads a dataset walks it."""
        raise NotImplementedError

    async def set(self, key: str, value: Buffer) -> None:
        """Not offered: the store is read-only."""
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """Not offered: the store is read-only."""
        raise NotImplementedError
