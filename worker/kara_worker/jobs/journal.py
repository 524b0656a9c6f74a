"""The port to where load jobs are written down, so that they outlive processes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from kara_worker.jobs.ledger import Record


class Stored(NamedTuple):
    """A job that is not over, as it is written down."""

    record: Record
    revision: int  # of this writing; a later one has a larger
    held: bool  # a worker that lives says that it coordinates the job
    stop: bool  # somebody asked for its end


class Journal(Protocol):
    """One running job and the last finished one for each path. Blocking; thread-safe.

    Any call may raise MembershipError: it was not reached, and whether a write took effect is unknown.
    """

    shared: bool  # whether all workers of the cluster write into it

    def submit(self, record: Record) -> Stored:
        """Writes a new job, held by us; or returns the one that is running for the path."""
        ...

    def active(self) -> list[Stored]: ...

    def find(self, path_or_id: str) -> Record | None:
        """The running job, else the last finished one."""
        ...

    def all(self) -> list[Record]: ...

    def claim(self, stored: Stored, record: Record) -> Stored | None:
        """Takes a job that nobody holds, writing `record`; None when somebody else was first."""
        ...

    def hold(self, stored: Stored) -> None:
        """Says again that we coordinate the job, after what said so was lost."""
        ...

    def save(self, stored: Stored, record: Record) -> Stored | None:
        """Writes how far the job is; None when it is in other hands now."""
        ...

    def finish(self, stored: Stored, record: Record) -> bool:
        """Writes the end of the job; False when it is in other hands now."""
        ...

    def ask_stop(self, record: Record) -> None: ...

    def release(self, stored: Stored, record: Record) -> None:
        """Lets others take the job at once, from where `record` is."""
        ...

    def beat(self) -> None:
        """To be called at least every second: keeps what we hold."""
        ...

    def close(self) -> None: ...
