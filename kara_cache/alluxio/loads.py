"""Load jobs by url, of a cache of ours or of a real Alluxio cluster."""

from __future__ import annotations

from typing import Any, Protocol

from kara_cache.alluxio.load_report import LoadReport, report_of, report_of_document
from kara_cache.alluxio.tree import AlluxioTree
from kara_cache.jobs import load_progress, stop_load, submit_load
from kara_cache.load_job import LoadState


class Loads(Protocol):
    """One job for each url at a time; the last one is remembered."""

    def submit(self, url: str, *, verbose: bool) -> bool:
        """Whether the job was taken; also true where the same one is running."""
        ...

    def progress(self, url: str, *, verbose: bool) -> LoadReport:
        """FAILED where there is no job."""
        ...

    def stop(self, url: str) -> bool:
        """False where there is no such job."""
        ...


class NativeLoads:
    """Of a real Alluxio cluster, by /v1/load."""

    def __init__(self, files: AlluxioTree) -> None:
        self._files = files

    def submit(self, url: str, *, verbose: bool) -> bool:
        return bool(self._ask(url, "submit", verbose).get("success"))

    def progress(self, url: str, *, verbose: bool) -> LoadReport:
        return report_of_document(self._ask(url, "progress", verbose))

    def stop(self, url: str) -> bool:
        return bool(self._ask(url, "stop", None).get("success"))

    def _ask(self, url: str, operation: str, verbose: bool | None) -> dict[str, Any]:
        cluster = self._files.cluster
        assert cluster is not None, "made for a real Alluxio cluster"
        return cluster.load(url, operation, verbose=verbose)


class ClusterLoads:
    """Of a cache of ours."""

    def __init__(self, files: AlluxioTree) -> None:
        self._files = files

    def submit(self, url: str, *, verbose: bool) -> bool:
        submit_load(self._files.client, self._files.kara_path(url))
        return True

    def progress(self, url: str, *, verbose: bool) -> LoadReport:
        try:
            return report_of(load_progress(self._files.client, self._files.kara_path(url)), url)
        except FileNotFoundError as exc:
            return LoadReport(LoadState.FAILED, {"jobState": "FAILED", "path": url, "message": str(exc)})

    def stop(self, url: str) -> bool:
        try:
            stop_load(self._files.client, self._files.kara_path(url))
        except FileNotFoundError:
            return False
        return True
