"""Rules for paths on the data port: docs/protocol.md, "Rules for paths"."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

from kara_cache.cluster import Cluster
from kara_cache.mount import normalize_path
from kara_cache.path_rule import Priority, rule_document
from kara_worker.access import AccessControl
from kara_worker.http.request import Request
from kara_worker.mounted_stores import MountedStores
from kara_worker.rules.path_rules import PathRules

_BODY_BYTES = 16 << 10
_KEYS = {"path", "pinned", "ttl_s", "priority"}
_PEER_TIMEOUT_S = 5.0

Handler = Callable[[Request], Awaitable[None]]


class RuleEndpoints:
    """Event loop only. Where workers share nothing, who is asked tells the others."""

    def __init__(
        self,
        rules: PathRules,
        stores: MountedStores,
        cluster: Cluster,
        access: AccessControl,
        executor: Executor,
        *,
        worker: str,
    ) -> None:
        self._rules = rules
        self._stores = stores
        self._cluster = cluster
        self._access = access
        self._executor = executor
        self._worker = worker

    def routes(self) -> dict[tuple[str, str], tuple[str, Handler]]:
        """For `PageServer`."""
        return {("GET", "/rules"): ("rules", self._list), ("POST", "/rules"): ("set_rule", self._set)}

    async def _list(self, request: Request) -> None:
        claims = self._access.identify(request)
        rules = await self._in_thread(self._rules.read)
        visible = [rule for rule in rules if claims is None or claims.allows("read", rule.path)]
        await request.respond_json([rule_document(rule) for rule in visible])

    async def _set(self, request: Request) -> None:
        body = await request.body_bytes(_BODY_BYTES)
        document = json.loads(body)
        path, said = _checked(document)
        self._access.check(request, "admin", path)
        self._stores.locate(path)
        rule = await self._in_thread(lambda: self._rules.change(path, **said))
        if not self._rules.shared and request.query.get("here") != "1":
            await self._tell_others(body)
        await request.respond_json(rule_document(rule))

    async def _tell_others(self, body: bytes) -> None:
        """Raises WorkerUnavailable where one could not be told: the rule would hold on some only."""
        table = self._cluster.table()

        def tell(worker: str) -> None:
            deadline = time.monotonic() + _PEER_TIMEOUT_S
            table.clients[worker].call("POST", "/rules", deadline, ("here", 1), body=body)

        others = [worker for worker in table.live if worker != self._worker]
        await asyncio.gather(*(self._in_thread(tell, worker) for worker in others))

    async def _in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)


def _checked(document: Any) -> tuple[str, dict[str, Any]]:
    """Path, and what is said of it: fields of a `PathRule`. Raises ValueError."""
    if not isinstance(document, dict) or not isinstance(document.get("path"), str):
        known = '"pinned": true or false, "ttl_s": seconds or null, "priority": text or null'
        raise ValueError(f'expected {{"path": text, {known}}}')
    if unknown := sorted(set(document) - _KEYS):
        raise ValueError(f"rule: unknown {', '.join(unknown)}; known: {', '.join(sorted(_KEYS))}")
    pinned, ttl_s = document.get("pinned"), document.get("ttl_s")
    if pinned is not None and not isinstance(pinned, bool):
        raise ValueError(f"rule: pinned: want true or false, got {pinned!r:.40}")
    if ttl_s is not None and (isinstance(ttl_s, bool) or not isinstance(ttl_s, (int, float))):
        raise ValueError(f"rule: ttl_s: want seconds or null, got {ttl_s!r:.40}")
    said = {key: document[key] for key in ("pinned", "ttl_s", "priority") if key in document}
    if pinned is None:
        said.pop("pinned", None)
    if said.get("priority") is not None:
        said["priority"] = _priority(said["priority"])
    return normalize_path(document["path"]), said


def _priority(text: object) -> Priority:
    try:
        return Priority(text)
    except ValueError:
        known = ", ".join(priority.value for priority in Priority)
        raise ValueError(f"rule: priority: want {known} or null, got {text!r:.40}") from None
