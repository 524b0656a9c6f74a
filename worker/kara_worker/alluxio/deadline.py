"""A bound on the silence before an answer: clients of the dialect wait for 20 s, or for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from kara_worker.http.request import Request


async def answered_within(deadline_s: float, request: Request, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`, which answers the request; TimeoutError when it has not begun to after `deadline_s`."""
    task = asyncio.current_task()
    assert task is not None
    expired = False

    def expire() -> None:
        nonlocal expired
        if not request.started:
            expired = True
            task.cancel()

    timer = asyncio.get_running_loop().call_later(deadline_s, expire)
    try:
        await work
    except asyncio.CancelledError:
        if not expired:
            raise
        if hasattr(task, "uncancel"):  # from Python 3.11 on, cancellations are counted
            task.uncancel()
        raise TimeoutError(f"{request.method} {request.path}: no answer within {deadline_s:g} s") from None
    finally:
        timer.cancel()
