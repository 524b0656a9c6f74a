"""Which workers of a real Alluxio cluster are asked, one after the other, and then the store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from kara_cache.alluxio.native_members import NativeMembers
from kara_cache.alluxio.native_worker import NativeHttp, NativeWorker
from kara_cache.client_metrics import ClientMetrics
from kara_cache.errors import CacheError, UnderStoreError, WorkerUnavailable
from kara_cache.failover import Fallback
from kara_cache.suspects import Suspects
from kara_cache.ufs.base import UnderStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OWNERS = 3  # of the ring that are tried: after three the store is nearer
_REMEMBERED = 10_000  # paths whose worker was told
_REMEMBER_S = 60.0  # as long as it takes to notice a new worker


class NativeRoute:
    """Thread-safe. alluxiofs asks one worker, for ever; here each call ends, and ends well if it can."""

    def __init__(
        self,
        members: NativeMembers,
        http: NativeHttp,
        metrics: ClientMetrics,
        *,
        timeout_s: float,
        suspect_s: float,
        fallback: Fallback,
    ) -> None:
        self._members = members
        self._http = http
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._fallback = fallback
        self._suspects = Suspects(suspect_s)
        self._nodes: dict[str, tuple[str, float]] = {}  # path: the worker that has it, and until when

    def run(
        self,
        path: str,
        ask: Callable[[NativeWorker], T],
        store: Callable[[UnderStore, str], T] | None,
        *,
        repeatable: bool = True,
    ) -> T:
        """The first answer. Raises WorkerUnavailable, saying who said what, where nobody could answer.

        What is not `repeatable` is asked of another worker only if the first one never heard of it.
        """
        deadline = monotonic() + self._timeout_s
        failures: list[str] = []
        asked: set[str] = set()
        reason = "unavailable"
        for address in self._owners(path):
            if failures and monotonic() >= deadline:
                break
            try:
                node = self._node(address, path)
                if node not in asked and node not in self._suspects:
                    address = node
                elif address in asked:
                    continue
                asked.add(address)
                answer = ask(self._http.worker(address))
            except CacheError as exc:
                failures.append(str(exc))
                reason = exc.reason
                self._failed(address, path, exc)
                if address in asked and not repeatable and exc.reason != "refused":
                    message = f"{path}: whether it took effect is not known: {exc}"
                    raise WorkerUnavailable(message, reason=exc.reason) from exc
            else:
                self._suspects.answered(address)
                return answer
        own = self._store_of(path) if store is not None else None
        if own is not None and store is not None:
            try:
                return store(*own)
            except UnderStoreError as exc:
                failures.append(str(exc))
        raise WorkerUnavailable(
            f"{path}: nothing could answer: {'; '.join(failures) or 'no worker is known'}", reason=reason
        )

    def _owners(self, path: str) -> list[str]:
        """The first workers of the ring, suspects last."""
        ring = [worker.name for worker in self._members.ring().owners(path, _OWNERS)]
        avoided = {address for address in ring if self._suspects.avoid(address)}
        return sorted(ring, key=lambda address: address in avoided)

    def _node(self, address: str, path: str) -> str:
        """The worker that has the path, as one of the ring tells. Raises CacheError where it does not."""
        known = self._nodes.get(path)
        if known is not None and monotonic() < known[1]:
            return known[0]
        try:
            node = self._http.worker(address).node(path)
        except OSError:  # of a path that is not there yet, or not for us: whoever is asked will say so
            return address
        if len(self._nodes) >= _REMEMBERED:
            self._nodes.clear()
        self._nodes[path] = (node, monotonic() + _REMEMBER_S)
        return node

    def _failed(self, address: str, path: str, exc: CacheError) -> None:
        self._metrics.fallback(exc.reason)
        if not exc.reason.startswith("http_4"):
            self._suspects.failed(address)
            self._members.doubt()
        self._nodes.pop(path, None)
        logger.debug("read.detour %s worker %s: %s", exc.reason, address, exc)

    def _store_of(self, path: str) -> tuple[UnderStore, str] | None:
        try:
            return self._fallback(path)
        except LookupError:
            return None
