"""A dataset's Zarr folders, local or on an object store, of which only verified bytes are read.

Zarr takes a missing chunk for a chunk of fill values, and reads parts of files, which no digest covers. This store
reads complete files, compares them with their digests, and cuts the parts out.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from typing import TypeVar

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from mrmfast.errors import ClosedError, MissingError, UserError
from mrmfast.storage.client import Client
from mrmfast.storage.local_folder import LocalFolder

T = TypeVar("T")
RECENT = 4  # files kept for further parts of them; a shard file of the genetics has up to 40 MB


class SealedStore(Store):
    """Read-only store; threads of the client or folder do the waiting.

    Parameters
    ----------
    files : Client or LocalFolder
        Compares complete files with their digests.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, files: Client | LocalFolder) -> None:
        super().__init__(read_only=True)
        self._files = files
        self._recent: OrderedDict[str, Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SealedStore) and other._files is self._files

    def sealed(self, folder: str) -> dict[str, str]:
        """Return name -> digest of the sealed folders directly below a folder."""
        return self._files.seals.below(folder)

    async def _ask(self, call: Callable[..., T], *arguments: object) -> T:
        if self._files.closing.is_set():  # the pool's own error is no ClosedError
            raise ClosedError(f"{self._files.url}: closed")
        return await asyncio.wrap_future(self._files.pool.submit(call, *arguments))

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a value or a part of it; None where there is none.

        Raises
        ------
        UserError
            A file that the digests list is missing, or differs from its digest.
        """
        data = await self._ask(self._read, key)
        if data is None:
            return None
        if isinstance(byte_range, RangeByteRequest):
            data = data[byte_range.start : byte_range.end]
        elif isinstance(byte_range, OffsetByteRequest):
            data = data[byte_range.offset :]
        elif isinstance(byte_range, SuffixByteRequest):
            data = data[max(0, len(data) - byte_range.suffix) :]
        return prototype.buffer.from_bytes(data)

    def _read(self, key: str) -> bytes | None:
        listed = self._files.seals.digest(key) is not None
        if not listed and self._files.seals.holds(key):
            return None
        with self._lock:
            file = self._recent.get(key)
            first = file is None
            if file is None:
                file = self._recent[key] = Future()
                while len(self._recent) > RECENT:
                    self._recent.popitem(last=False)
        if first:
            # Other threads that want a part of the file wait for this one.
            try:
                file.set_result(self._files.read(key))
            except BaseException as error:
                with self._lock:
                    self._recent.pop(key, None)
                file.set_exception(error)
        try:
            return file.result()
        except MissingError as error:
            if listed:
                raise UserError(str(error)) from None
            return None

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of values, all at once."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Tell whether there is a value."""
        return await self._ask(self._read, key) is not None

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly below `prefix`, if the object store can list."""
        for name in await self._ask(self._files.names, prefix):
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
