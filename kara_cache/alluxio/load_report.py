"""What `load_progress` returns: as alluxiofs documents it, and as alluxiofs 1.0.17 does it."""

from __future__ import annotations

from typing import Any, NamedTuple

from kara_cache.load_job import LoadJob, LoadState, job_document


class LoadReport(NamedTuple):
    """A state that also unpacks: `state, content = client.load_progress(path)`.

    alluxiofs 1.0.17 documents a `LoadState` (`progress.name`, `progress == LoadState.SUCCEEDED`) and
    returns a pair; programs were written against both.
    """

    state: LoadState
    content: dict[str, Any]
    """What the worker told: `jobState`, `path`, `message`, and of our own workers the whole `job`."""

    @property
    def name(self) -> str:
        return self.state.name

    @property
    def value(self) -> str:
        return self.state.value

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (LoadState, str)):
            return self.state == other
        return tuple.__eq__(self, other) if isinstance(other, tuple) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other


def report_of(job: LoadJob, path: str) -> LoadReport:
    state = LoadState.RUNNING if job.state is LoadState.QUEUED else job.state  # a word alluxiofs lacks
    content = {"jobState": state.value, "path": path, "message": job.message, "job": job_document(job)}
    return LoadReport(state, content)


def report_of_document(document: dict[str, Any]) -> LoadReport:
    """Of what /v1/load answers. ValueError for a state that is none.

    Alluxio decorates a failure ("FAILED: ..."), so whatever speaks of one is one.
    """
    text = str(document.get("jobState", ""))
    return LoadReport(LoadState.FAILED if "FAILED" in text else LoadState(text), document)
