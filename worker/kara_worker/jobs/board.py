"""The port to load jobs, for everything on a worker that takes requests for them."""

from __future__ import annotations

from typing import Protocol

from kara_cache.load_job import LoadJob, LoadOptions


class LoadBoard(Protocol):
    """Any worker's board answers for any job of the cluster. Event loop only.

    Paths are full kara paths (`/mount/...`); whether the caller may use them was checked before.
    Every method may raise MembershipError or WorkerUnavailable: where jobs are kept cannot be reached.
    """

    async def submit(self, path: str, options: LoadOptions) -> LoadJob:
        """A new job, or the one that is running for this path, with the options that it was given.

        Raises ValueError for a path that cannot be one, FileNotFoundError for an unknown mount; that
        the store has no such file is found out by the job.
        """
        ...

    async def find(self, path_or_id: str) -> LoadJob | None:
        """The running or last job of a path, or the job of an id while it is that."""
        ...

    async def stop(self, path_or_id: str) -> LoadJob | None:
        """Asks for the end of a job; it is STOPPED within about a second. A final job stays as it is."""
        ...

    async def list(self) -> list[LoadJob]:
        """Running jobs and those that ended in the last days, newest first."""
        ...
