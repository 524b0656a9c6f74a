"""The cluster as etcd knows it, kept up to date by a thread and remembered on disk."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from kara_cache.errors import MembershipError
from kara_cache.jitter import jitter
from kara_cache.membership.base import MembershipView
from kara_cache.membership.etcd import Compacted, EtcdClient, Watch
from kara_cache.membership.last_known import LastKnownView
from kara_cache.membership.roster import Roster

logger = logging.getLogger(__name__)

# A quiet watch is doubted after this long: a paused server or a vanished host says nothing either.
# It bounds how long such a fault hides a change; at 10,000 clients etcd sees 333 small requests a second.
IDLE_TIMEOUT_S = 30.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 5.0

_NOBODY = MembershipView((), 0, "disk")


@dataclass(frozen=True, slots=True)
class MembershipStats:
    """Counters of this process. readings <= watches + failures + 1: what is quiet is not read again."""

    connected: bool  # etcd answered last time and is being watched
    readings: int  # complete lists read
    watches: int  # watches begun
    failures: int  # calls and watches that broke


class EtcdMembership:
    """A `Membership` that follows etcd; construction does nothing but remember its arguments.

    The first `view()` of a process starts a daemon thread and waits for it at most the client's connect
    timeout. From then on the view is replaced whenever a worker comes, goes or changes. While
    etcd cannot be reached the last view stays, for ever. A forked child begins with the view of its
    parent and watches on its own. `revision` follows etcd's; when etcd was restored from an older
    backup it counts on from where it was.
    """

    def __init__(
        self,
        client: EtcdClient,
        cluster: str,
        *,
        state_dir: str | os.PathLike[str] | None,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        """`state_dir` is where the last view is kept; None keeps none."""
        Roster(client, cluster)  # refuses a bad cluster name here rather than in the thread
        self._client = client
        self._cluster = cluster
        self._idle_timeout_s = idle_timeout_s
        self._disk = None if state_dir is None else LastKnownView(state_dir, cluster, client.endpoints)
        self._lock = threading.Lock()  # guards the replacement of _follower
        self._follower: _Follower | None = None  # of this process
        self._inherited: _Follower | None = None  # of the process that forked us
        self._closed = False
        _reset_after_fork(self)

    def __repr__(self) -> str:
        view = self._follower.view if self._follower else _NOBODY
        return f"<EtcdMembership {self._cluster}: {len(view.workers)} workers, revision {view.revision}>"

    def view(self) -> MembershipView:
        follower = self._follower or self._follow()
        if not follower.settled.is_set():
            follower.settled.wait(self._client.connect_timeout_s)
            follower.settled.set()  # whoever comes later need not wait for a silent etcd again
        return follower.view

    def wait_for(self, predicate: Callable[[MembershipView], bool], timeout_s: float) -> MembershipView:
        """The first view that satisfies `predicate`; TimeoutError, naming the last one, after `timeout_s`."""
        self.view()
        follower = self._follower
        assert follower is not None
        with follower.changed:
            if not follower.changed.wait_for(lambda: predicate(follower.view), timeout_s):
                raise TimeoutError(f"not so within {timeout_s:g} s, the last view is {follower.view}")
            return follower.view

    @property
    def endpoint(self) -> str:
        """The etcd that is being followed."""
        return self._client.endpoint

    def stats(self) -> MembershipStats:
        follower = self._follower
        return follower.stats() if follower else MembershipStats(False, 0, 0, 0)

    def close(self) -> None:
        """Ends the thread; the view stays as it is."""
        with self._lock:
            self._closed = True
            follower = self._follower
        if follower is not None:
            follower.stop()
            follower.join(timeout_s=1.0)

    def _follow(self) -> _Follower:
        inherited = self._inherited
        known = inherited.view if inherited else (self._disk and self._disk.load()) or _NOBODY
        with self._lock:
            if self._follower is not None:
                return self._follower  # another thread was quicker
            follower = _Follower(self._client, self._cluster, self._disk, known, self._idle_timeout_s)
            if self._closed or (inherited is not None and inherited.settled.is_set()):
                follower.settled.set()
            if not self._closed:
                # The thread holds the follower, never the membership: dropping the latter ends the thread.
                weakref.finalize(self, follower.stop)
                follower.start()
            self._follower = follower
            return follower


class _Follower:
    """The thread of one process that follows etcd, and the view it last made."""

    def __init__(
        self,
        client: EtcdClient,
        cluster: str,
        disk: LastKnownView | None,
        known: MembershipView,
        idle_timeout_s: float,
    ) -> None:
        self.pid = os.getpid()
        self.view = known  # replaced, never changed; written by the thread only
        self.settled = threading.Event()  # the first reading succeeded or failed
        self.changed = threading.Condition()  # notified after each replacement of `view`
        self._client = client
        self._roster = Roster(client, cluster)
        self._disk = disk
        self._idle_timeout_s = idle_timeout_s
        self._stopping = threading.Event()
        self._watch: Watch | None = None
        self._thread = threading.Thread(target=self._run, name="kara-membership", daemon=True)
        self._connected = False
        self._readings = self._watches = self._failures = 0
        self._attempt = 0  # failures in a row

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Idempotent and quick; nothing in a process that only inherited this."""
        if self.pid != os.getpid():
            return
        self._stopping.set()
        watch = self._watch
        if watch is not None:
            watch.cancel()

    def join(self, timeout_s: float) -> None:
        if (
            self.pid == os.getpid()
            and self._thread.is_alive()
            and self._thread is not threading.current_thread()
        ):
            self._thread.join(timeout_s)

    def stats(self) -> MembershipStats:
        return MembershipStats(self._connected, self._readings, self._watches, self._failures)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._read_and_watch()

    def _read_and_watch(self) -> None:
        try:
            self._catch_up()
            self._publish()
            self._follow_changes()
        except Compacted as exc:
            logger.debug("%s", exc)
        except MembershipError as exc:
            self._failed(exc)
        except Exception as exc:
            logger.exception("following etcd failed")
            self._failed(exc)

    def _catch_up(self) -> None:
        if self._attempt == 0:
            self._readings += self._roster.refresh()
        else:
            self._roster.read()
            self._readings += 1

    def _follow_changes(self) -> None:
        """Until the watch is quiet for long, cancelled or broken."""
        watch = self._client.watch(
            self._roster.prefixes, self._roster.revision + 1, idle_timeout_s=self._idle_timeout_s
        )
        self._watch = watch
        if self._stopping.is_set():
            return
        for events in watch:
            if not events:
                self._began()
            self._roster.apply(events)
            self._publish()

    def _began(self) -> None:
        if not self._connected and self._failures:
            logger.info("etcd answers again: %d workers", len(self.view.workers))
        self._watches += 1
        self._connected = True
        self._attempt = 0

    def _failed(self, exc: Exception) -> None:
        if self._connected or not self._failures:
            logger.warning(
                "etcd cannot be followed, %d workers stay as known: %s", len(self.view.workers), exc
            )
        self._failures += 1
        self._connected = False
        self.settled.set()
        longest_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2**self._attempt)
        self._attempt = min(self._attempt + 1, 16)
        # Half of it random, or all clients of a restarted etcd come back in step.
        self._stopping.wait(longest_s * jitter(0.5, 1.0))

    def _publish(self) -> None:
        before, workers = self.view, self._roster.workers()
        if workers == before.workers and before.source == "etcd":
            return
        revision = self._roster.revision
        if revision <= before.revision:
            revision = before.revision + (workers != before.workers)
        view = MembershipView(workers, revision, "etcd")
        with self.changed:
            self.view = view
            self.changed.notify_all()
        self.settled.set()
        logger.debug("view %d: %s", revision, workers)
        if self._disk is not None:
            self._disk.save(view)


_memberships: weakref.WeakSet[EtcdMembership] = weakref.WeakSet()
_hooked = False


def _reset_after_fork(membership: EtcdMembership) -> None:
    """A hook rather than a look at the pid: `view` is called for every read, and getpid costs half of it."""
    global _hooked
    _memberships.add(membership)
    if not _hooked:
        _hooked = True
        os.register_at_fork(after_in_child=_reset_all)


def _reset_all() -> None:
    """The child has no thread of ours, and a lock that another thread held would stay locked for ever."""
    for membership in list(_memberships):
        membership._lock = threading.Lock()
        membership._inherited = membership._follower or membership._inherited
        membership._follower = None
