"""A request's body into a store: the file appears whole at the end, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor

from kara_cache.ufs.base import FileInfo, UnderStoreWriter

_WRITE_BYTES = 1 << 20  # handed to the store at a time


async def upload(pieces: AsyncIterator[bytes], writer: UnderStoreWriter, executor: Executor) -> FileInfo:
    """Writes and commits in threads of `executor`; whatever ends it early aborts the writer."""
    loop = asyncio.get_running_loop()
    try:
        pending = bytearray()
        async for piece in pieces:
            pending += piece
            if len(pending) >= _WRITE_BYTES:
                await loop.run_in_executor(executor, writer.write, bytes(pending))
                pending.clear()
        if pending:
            await loop.run_in_executor(executor, writer.write, bytes(pending))
        return await loop.run_in_executor(executor, writer.commit)
    except BaseException:
        # in a thread of its own: this task may have been cancelled, and the store must not keep parts
        executor.submit(writer.abort)
        raise
