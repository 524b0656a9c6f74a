"""Where rules for paths are written down: etcd for a cluster, a file beside the pages without it."""

from __future__ import annotations

import json
import logging
import threading
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from kara_cache.errors import FormatError, MembershipError
from kara_cache.membership.etcd import EtcdClient
from kara_cache.membership.records import cluster_prefix
from kara_cache.path_rule import PathRule, decode_rule, decode_rule_document, encode_rule, rule_document

log = logging.getLogger(__name__)


class RuleShelf(Protocol):
    """Blocking; thread-safe. Any call may raise MembershipError: it was not reached."""

    shared: bool  # whether all workers of the cluster have the same one

    def read(self) -> tuple[PathRule, ...]:
        """All rules, by path."""
        ...

    def write(self, rule: PathRule) -> None:
        """Replaces the rule for the path; one that says nothing is removed."""
        ...

    def close(self) -> None: ...


class EtcdRules:
    """`/KaraCache/{cluster}/rules/{key}`; the key stands for the path."""

    shared = True

    def __init__(self, client: EtcdClient, cluster: str) -> None:
        self._client = client
        self._prefix = f"{cluster_prefix(cluster)}rules/"

    def read(self) -> tuple[PathRule, ...]:
        rules = []
        for item in self._client.list(self._prefix):
            try:
                rules.append(decode_rule(item.value))
            except FormatError as exc:  # noqa: PERF203 - a handful
                log.warning("%s: %s", item.key, exc)
        return tuple(sorted(rules, key=lambda rule: rule.path))

    def write(self, rule: PathRule) -> None:
        key = self._prefix + blake2b(rule.path.encode(), digest_size=16).hexdigest()
        if rule.says_nothing:
            self._client.delete(key)
        else:
            self._client.put(key, encode_rule(rule))

    def close(self) -> None:
        self._client.close()


class LocalRules:
    """A JSON list in one file, written whole."""

    shared = False

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()  # guards the file

    def read(self) -> tuple[PathRule, ...]:
        with self._lock:
            return self._read()

    def _read(self) -> tuple[PathRule, ...]:
        try:
            return tuple(decode_rule_document(document) for document in json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError, FormatError) as exc:
            raise MembershipError(f"rules for paths in {self._file}: {exc}") from exc

    def write(self, rule: PathRule) -> None:
        with self._lock:
            rules = {known.path: known for known in self._read()} | {rule.path: rule}
            kept = [rule_document(rules[path]) for path in sorted(rules) if not rules[path].says_nothing]
            partial = self._file.with_suffix(".new")
            try:
                partial.write_text(json.dumps(kept))
                partial.replace(self._file)
            except OSError as exc:
                raise MembershipError(f"rules for paths in {self._file}: {exc}") from exc

    def close(self) -> None:
        pass
