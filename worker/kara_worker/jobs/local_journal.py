"""Load jobs of a worker without etcd: files beside its pages, so that they outlive its process."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

from kara_cache.errors import FormatError
from kara_worker.jobs.journal import Stored
from kara_worker.jobs.ledger import Record, decode_record, encode_record, key_of, names

log = logging.getLogger(__name__)

_DONE_KEPT_S = 7 * 86_400.0


class LocalJournal:
    """Implements `Journal` for one process, which holds every job that is not over. Thread-safe.

    A record that cannot be written is kept in memory and logged: a job goes on without its file.
    """

    shared = False

    def __init__(self, directory: Path, worker: str) -> None:
        """`directory` is made when the first job is written."""
        self._directory = directory
        self._worker = worker
        self._lock = threading.Lock()  # guards all below, and the files
        self._records: dict[str, Record] = {}
        self._revisions: dict[str, int] = {}
        self._held: set[str] = set()  # by this process: what an earlier one left is taken up as abandoned
        self._stops: dict[str, str] = {}
        self._read()

    def submit(self, record: Record) -> Stored:
        key = key_of(record.job.path)
        with self._lock:
            known = self._records.get(key)
            if known is not None and not known.job.state.final:
                return self._stored(key)
            self._held.add(key)
            self._stops.pop(key, None)
            self._write(key, record)
            return self._stored(key)

    def active(self) -> list[Stored]:
        with self._lock:
            return [self._stored(key) for key, record in self._records.items() if not record.job.state.final]

    def find(self, path_or_id: str) -> Record | None:
        with self._lock:
            record = self._records.get(key_of(path_or_id))
        return record if record is not None and names(record.job, path_or_id) else None

    def all(self) -> list[Record]:
        with self._lock:
            self._forget_old()
            return list(self._records.values())

    def claim(self, stored: Stored, record: Record) -> Stored | None:
        key = key_of(record.job.id)
        with self._lock:
            if key in self._held or self._revisions.get(key) != stored.revision:
                return None
            self._held.add(key)
            self._write(key, record)
            return self._stored(key)

    def hold(self, stored: Stored) -> None:
        pass

    def save(self, stored: Stored, record: Record) -> Stored | None:
        key = key_of(record.job.id)
        with self._lock:
            self._write(key, record)
            return self._stored(key)

    def finish(self, stored: Stored, record: Record) -> bool:
        key = key_of(record.job.id)
        with self._lock:
            self._held.discard(key)
            self._stops.pop(key, None)
            self._write(key, record)
            self._forget_old()
        return True

    def ask_stop(self, record: Record) -> None:
        with self._lock:
            self._stops[key_of(record.job.id)] = record.job.id

    def release(self, stored: Stored, record: Record) -> None:
        self.save(stored, record)

    def beat(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _stored(self, key: str) -> Stored:
        record = self._records[key]
        stop = self._stops.get(key) == record.job.id
        return Stored(record, self._revisions[key], key in self._held, stop)

    def _read(self) -> None:
        for path in sorted(self._directory.glob("*.json")) if self._directory.is_dir() else ():
            try:
                record = decode_record(path.read_bytes())
            except (OSError, FormatError) as exc:
                log.warning("%s: %s", path, exc)
                continue
            self._records[path.stem] = record
            self._revisions[path.stem] = 1

    def _write(self, key: str, record: Record) -> None:
        record = Record(replace(record.job, coordinator=self._worker), record.ledger, record.claim)
        self._records[key] = record
        self._revisions[key] = self._revisions.get(key, 0) + 1
        partial = self._directory / f"{key}.new"
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            partial.write_bytes(encode_record(record))
            partial.replace(self._directory / f"{key}.json")
        except OSError as exc:
            log.warning("load job %s is not written down: %s", record.job.id, exc)

    def _forget_old(self) -> None:
        now = time.time()
        for key, record in list(self._records.items()):
            if now - (record.job.finished_s or now) > _DONE_KEPT_S:
                del self._records[key], self._revisions[key]
                (self._directory / f"{key}.json").unlink(missing_ok=True)
