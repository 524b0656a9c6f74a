"""The books of one load job: what was counted so far, and where to go on. Pure, and written down as JSON."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b

import msgspec

from kara_cache.errors import FormatError
from kara_cache.load_job import (
    MAX_SAMPLES,
    LoadJob,
    LoadOptions,
    LoadProgress,
    LoadReceipt,
    LoadState,
)

_KEY_CHARACTERS = 16


class Tally(msgspec.Struct):
    """Counts of pages, requests and files; pages = present + the sum of failed."""

    files: int = 0
    bytes: int = 0
    pages: int = 0
    present: int = 0
    fetched: int = 0
    bytes_fetched: int = 0
    requests: int = 0
    retries: int = 0
    failed: dict[str, int] = msgspec.field(default_factory=dict)  # pages by reason
    samples: dict[str, list[str]] = msgspec.field(default_factory=dict)  # paths by reason

    def add(self, other: Tally) -> None:
        self.files += other.files
        self.bytes += other.bytes
        self.pages += other.pages
        self.present += other.present
        self.fetched += other.fetched
        self.bytes_fetched += other.bytes_fetched
        self.requests += other.requests
        self.retries += other.retries
        for reason, pages in other.failed.items():
            self.failed[reason] = self.failed.get(reason, 0) + pages
        for reason, paths in other.samples.items():
            for path in paths:
                self._sample(reason, path)

    def fail(self, reason: str, pages: int, path: str) -> None:
        """`pages` are expected and not there."""
        self.pages += pages
        self.failed[reason] = self.failed.get(reason, 0) + pages
        self._sample(reason, path)

    def _sample(self, reason: str, path: str) -> None:
        paths = self.samples.setdefault(reason, [])
        if len(paths) < MAX_SAMPLES and path not in paths:
            paths.append(path)

    @property
    def missing(self) -> int:
        return sum(self.failed.values())


class Ledger(msgspec.Struct):
    """A job goes over its files in rounds: it loads, then looks for every page, and once more after repairs.

    `after` is the last file of this round whose pages, and those of all files before it, are in `done`:
    who takes over goes on behind it.
    """

    round: int = 0
    since_ns: int = 0  # when the round began, Unix time
    after: str = ""  # "" is the beginning
    manifest: str = bytes(32).hex()  # `ManifestSum` of the files up to `after`
    done: Tally = msgspec.field(default_factory=Tally)  # of this round
    earlier: Tally = msgspec.field(default_factory=Tally)  # of the rounds before, added up
    loaded: Tally = msgspec.field(default_factory=Tally)  # of the first round, when it is over
    lost: Tally = msgspec.field(default_factory=Tally)  # failures of the first round that no other can see
    files_listed: int = 0
    bytes_listed: int = 0
    listed_all: bool = False
    seconds: float = 0.0  # spent before the present coordinator

    def copy(self) -> Ledger:
        return msgspec.json.decode(msgspec.json.encode(self), type=Ledger)

    def next_round(self, since_ns: int) -> Ledger:
        earlier = Tally()
        earlier.add(self.earlier)
        earlier.add(self.done)
        return Ledger(
            round=self.round + 1,
            since_ns=since_ns,
            earlier=earlier,
            loaded=self.loaded if self.round else self.done,
            lost=self.lost,
            files_listed=self.files_listed,
            bytes_listed=self.bytes_listed,
            listed_all=self.listed_all,
            seconds=self.seconds,
        )

    def progress(self, running: Iterable[Tally], seconds: float) -> LoadProgress:
        """`running` is what is counted behind `after`; `seconds` what the present coordinator has spent."""
        now, all_rounds = Tally(), Tally()
        now.add(self.done)
        for tally in running:
            now.add(tally)
        all_rounds.add(self.earlier)
        all_rounds.add(now)
        loaded = self.loaded if self.round else now
        return LoadProgress(
            files_listed=self.files_listed,
            bytes_listed=self.bytes_listed,
            listing_complete=self.listed_all,
            files=loaded.files,
            bytes=loaded.bytes,
            files_verified=now.files if self.round else 0,
            pages_fetched=all_rounds.fetched,
            bytes_fetched=all_rounds.bytes_fetched,
            pages_skipped=max(0, loaded.present - loaded.fetched),
            store_requests=all_rounds.requests,
            pages_failed=now.missing + (self.lost.missing if self.round else 0),
            retries=all_rounds.retries,
            seconds=self.seconds + seconds,
        )

    def receipt(self, options: LoadOptions, seconds: float) -> LoadReceipt:
        final = Tally()
        final.add(self.done)
        final.add(self.lost)
        return LoadReceipt(
            files=self.done.files,
            bytes=self.done.bytes,
            pages_expected=final.pages,
            pages_present=final.present,
            failed=final.failed,
            samples=final.samples,
            bytes_fetched=self.earlier.bytes_fetched + self.done.bytes_fetched,
            store_requests=self.earlier.requests + self.done.requests,
            manifest=self.manifest,
            content_verified=options.verify,
            seconds=round(self.seconds + seconds, 3),
        )


class Record(msgspec.Struct, frozen=True):
    """What is written down of a job."""

    job: LoadJob
    ledger: Ledger
    claim: str = ""  # another one each time that a coordinator takes the job


def new_record(path: str, options: LoadOptions, coordinator: str) -> Record:
    now_ns = time.time_ns()
    job = LoadJob(
        id=key_of(path) + secrets.token_hex(_KEY_CHARACTERS // 2),
        path=path,
        state=LoadState.QUEUED,
        options=options,
        progress=LoadProgress(),
        receipt=None,
        submitted_s=now_ns / 1e9,
        coordinator=coordinator,
    )
    return Record(job, Ledger(since_ns=now_ns), secrets.token_hex(8))


def claimed(record: Record, coordinator: str) -> Record:
    """The same job in the hands of another coordinator."""
    return Record(replace(record.job, coordinator=coordinator), record.ledger, secrets.token_hex(8))


def key_of(path_or_id: str) -> str:
    """Where a job is kept: one place for each path, which the ids of its jobs begin with."""
    if not path_or_id.startswith("/"):
        return path_or_id[:_KEY_CHARACTERS]
    return blake2b(path_or_id.encode(), digest_size=_KEY_CHARACTERS // 2).hexdigest()


def names(job: LoadJob, path_or_id: str) -> bool:
    return path_or_id in (job.path, job.id)


def encode_record(record: Record) -> bytes:
    return msgspec.json.encode(record)


def decode_record(data: bytes) -> Record:
    """Raises FormatError."""
    try:
        return msgspec.json.decode(data, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise FormatError(f"load job record: {exc}") from None
