"""Rules of operators for what lies below a path: pages that stay, that go after a while or first. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from kara_cache.errors import FormatError
from kara_cache.mount import is_below, normalize_path


class Priority(str, enum.Enum):
    """Which pages leave first where there is no room; among equals it is as the eviction policy says."""

    LOW = "low"  # before all others
    MEDIUM = "medium"  # of which nobody said anything
    HIGH = "high"  # after all others


@dataclass(frozen=True, slots=True)
class PathRule:
    """For a file, or all files below a directory, whether they exist already or not."""

    path: str
    pinned: bool = False  # pages are never evicted for room, and always admitted
    ttl_s: float | None = None  # pages are dropped so long after they were fetched, pinned or not
    priority: Priority | None = None  # None: that of what lies around it

    def __post_init__(self) -> None:
        if normalize_path(self.path) != self.path or self.path == "/":
            raise ValueError(f"rule for {self.path!r}: want a path below a mount, without a slash at the end")
        if self.ttl_s is not None and not self.ttl_s > 0:
            raise ValueError(f"rule for {self.path}: ttl_s: want more than 0, got {self.ttl_s}")

    @property
    def says_nothing(self) -> bool:
        return not self.pinned and self.ttl_s is None and self.priority is None


def is_pinned(rules: Iterable[PathRule], path: str) -> bool:
    return any(rule.pinned and is_below(path, rule.path) for rule in rules)


def ttl_of(rules: Iterable[PathRule], path: str) -> float | None:
    """The shortest of those that cover the path: a rule below another one cannot lengthen its time."""
    return min((r.ttl_s for r in rules if r.ttl_s is not None and is_below(path, r.path)), default=None)


def priority_of(rules: Iterable[PathRule], path: str) -> Priority:
    """That of the nearest rule which says one."""
    said = [rule for rule in rules if rule.priority is not None and is_below(path, rule.path)]
    nearest = max(said, key=lambda rule: len(rule.path), default=None)
    return (nearest and nearest.priority) or Priority.MEDIUM


def encode_rule(rule: PathRule) -> bytes:
    return msgspec.json.encode(rule)


def decode_rule(data: bytes | str) -> PathRule:
    """Raises FormatError."""
    try:
        return msgspec.json.decode(data, type=PathRule)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as exc:
        raise FormatError(f"path rule: {exc}") from None


def rule_document(rule: PathRule) -> dict[str, Any]:
    return dict(msgspec.to_builtins(rule))


def decode_rule_document(document: Any) -> PathRule:
    """Raises FormatError."""
    try:
        return msgspec.convert(document, PathRule)
    except (msgspec.ValidationError, ValueError) as exc:
        raise FormatError(f"path rule: {exc}") from None
