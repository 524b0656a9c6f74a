"""Rules for paths from Python: what stays in the cache whatever comes, what goes after a while or first.

    pin(client, "/data/models")              never evicted for room
    set_ttl(client, "/data/scratch", 86_400) dropped a day after it was fetched
    set_priority(client, "/data/raw", "low") gives way to all others

A rule is kept by the cluster and holds for what is below its path now and later. Errors are those of
every call to the cache; changing a rule takes the right to administer the path.
"""

from __future__ import annotations

import json
from typing import Any

from kara_cache.cache_client import CacheClient
from kara_cache.errors import FormatError, WorkerUnavailable
from kara_cache.path_rule import PathRule, Priority, decode_rule_document


def pin(client: CacheClient, path: str) -> PathRule:
    """Pages below the path are not evicted, and come in whatever the policy says. Fetches nothing."""
    return _change(client, path, pinned=True)


def unpin(client: CacheClient, path: str) -> PathRule:
    """The other way round; pages are then like any others."""
    return _change(client, path, pinned=False)


def set_ttl(client: CacheClient, path: str, ttl_s: float | None) -> PathRule:
    """Pages below the path are dropped `ttl_s` seconds after they were fetched; None: no longer."""
    return _change(client, path, ttl_s=ttl_s)


def set_priority(client: CacheClient, path: str, priority: Priority | str | None) -> PathRule:
    """Where there is no room pages of low priority leave before others, of high priority after them; a page
    never takes the place of one of higher priority. None: as what lies around it. The nearest rule counts."""
    return _change(client, path, priority=None if priority is None else Priority(priority).value)


def list_rules(client: CacheClient) -> list[PathRule]:
    """By path; those that the caller may read."""
    documents = client.ask("GET", "/rules", "/")
    if not isinstance(documents, list):
        raise WorkerUnavailable(f"rules for paths: got {documents!r:.100}", reason="protocol")
    return [_rule(document) for document in documents]


def _change(client: CacheClient, path: str, **change: Any) -> PathRule:
    return _rule(client.ask("POST", "/rules", path, body=json.dumps({"path": path, **change}).encode()))


def _rule(document: object) -> PathRule:
    try:
        return decode_rule_document(document)
    except FormatError as exc:
        raise WorkerUnavailable(str(exc), reason="protocol") from exc


__all__ = ["PathRule", "Priority", "list_rules", "pin", "set_priority", "set_ttl", "unpin"]
