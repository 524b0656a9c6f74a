"""Which page goes when there is no room. One policy a file, each pure; `Guard` is put around one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kara_cache.errors import ConfigError
from kara_worker.eviction.base import EvictionPolicy
from kara_worker.eviction.guard import Guard
from kara_worker.eviction.lru import LeastRecentlyUsed
from kara_worker.eviction.priorities import Priorities
from kara_worker.eviction.quotas import Quotas
from kara_worker.eviction.s3fifo import S3Fifo

POLICIES: dict[str, Callable[[], EvictionPolicy]] = {"lru": LeastRecentlyUsed, "s3fifo": S3Fifo}


def make_policy(name: str, guard: bool, *, groups: Sequence[str] = ()) -> EvictionPolicy:
    """A fresh policy by its configured name, for epoch scans inside a `Guard`; one of its own for each of
    `groups`, which have quotas, and for each priority. Raises ConfigError."""
    try:
        policy = POLICIES[name]
    except KeyError:
        known = ", ".join(sorted(POLICIES))
        raise ConfigError(f"eviction policy {name!r}: expected one of {known}") from None
    made: Callable[[], EvictionPolicy] = (lambda: Guard(policy)) if guard else policy
    level: Callable[[], EvictionPolicy] = (lambda: Quotas(groups, made)) if groups else made
    return Priorities(level(), level)


__all__ = ["POLICIES", "EvictionPolicy", "Guard", "LeastRecentlyUsed", "Quotas", "S3Fifo", "make_policy"]
