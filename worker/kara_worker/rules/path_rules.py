"""Keeps the rules for paths: pages below pinned paths stay, others go when their time is over, or first."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import Any

from kara_cache.errors import MembershipError
from kara_cache.jitter import jitter
from kara_cache.mount import is_below
from kara_cache.path_rule import PathRule, is_pinned, priority_of, ttl_of
from kara_worker.pages.page_store import PageStore
from kara_worker.rules.shelf import RuleShelf

log = logging.getLogger(__name__)

_LOOK_S = 1.0


class PathRules:
    """Thread-safe. Between `start` and `close` a thread follows the shelf; a rule set elsewhere holds here
    within about a second, one set here at once. While the shelf is out of reach they stay as they are."""

    def __init__(self, shelf: RuleShelf, pages: PageStore) -> None:
        self._shelf = shelf
        self._pages = pages
        self._lock = threading.Lock()  # guards all below
        self._rules: tuple[PathRule, ...] = ()
        self._pinned: set[bytes] = set()  # files that are sheltered for a rule
        self._ranks = False  # whether any rule has said a priority since the start
        self._wake = threading.Event()
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._follow, name="path-rules", daemon=True)

    @property
    def shared(self) -> bool:
        return self._shelf.shared

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Idempotent."""
        if not self._closing:
            self._closing = True
            self._wake.set()
            if self._thread.is_alive():
                self._thread.join(5.0)
            self._shelf.close()

    def read(self) -> tuple[PathRule, ...]:
        """Blocking: as they are written down now."""
        return self._shelf.read()

    def change(self, path: str, **said: Any) -> PathRule:  # Any: fields of `PathRule`
        """Blocking: what is not said stays as it was. Returns the rule, which may say nothing."""
        known = next((rule for rule in self._shelf.read() if rule.path == path), PathRule(path))
        rule = replace(known, **said)
        self._shelf.write(rule)
        self._apply(self._shelf.read())
        return rule

    def note(self, file_id: bytes, path: str) -> None:
        """Before pages of a file are put: rules say whether they stay, and which leave before others."""
        rules = self._rules
        if not rules and not self._ranks:
            return
        if self._ranks:
            self._pages.prefer(file_id, priority_of(rules, path))
        with self._lock:
            if file_id not in self._pinned and is_pinned(self._rules, path):
                self._pinned.add(file_id)
                self._pages.shelter(file_id)

    def expire(self, now_ns: int) -> int:
        """Drops what is older than the rules allow; the number of pages."""
        rules = self._rules
        if all(rule.ttl_s is None for rule in rules):
            return 0
        return self._pages.expire_files(lambda path: ttl_of(rules, path), now_ns)

    def _follow(self) -> None:
        while not self._closing:
            try:
                self._apply(self._shelf.read())
                self._failing = False
            except MembershipError as exc:
                if not self._failing:  # once for each outage
                    log.warning("rules for paths stay as they are: %s", exc)
                self._failing = True
            except Exception:
                log.exception("rules for paths")
            self._wake.wait(_LOOK_S * jitter(0.7, 1.0))

    def _apply(self, rules: tuple[PathRule, ...]) -> None:
        if rules == self._rules:
            return
        pins = [rule.path for rule in rules if rule.pinned]
        ranks = self._ranks = self._ranks or any(rule.priority is not None for rule in rules)
        # the new rules count for what is put from now on; then what is here is looked through
        with self._lock:
            self._rules = rules
            if not pins:
                released, self._pinned = self._pinned, set()
                for file_id in released:
                    self._pages.expose(file_id)
                if not ranks:
                    return
        here = {stored.file_id: stored.path for stored in self._pages.files()}
        for file_id, path in here.items() if ranks else ():
            self._pages.prefer(file_id, priority_of(rules, path))
        with self._lock:
            for file_id, path in here.items():
                wanted = any(is_below(path, pin) for pin in pins)
                if wanted and file_id not in self._pinned:
                    self._pinned.add(file_id)
                    self._pages.shelter(file_id)
                elif not wanted and file_id in self._pinned:
                    self._pinned.discard(file_id)
                    self._pages.expose(file_id)
