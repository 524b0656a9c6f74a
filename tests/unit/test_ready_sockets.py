"""Many sockets behind one descriptor of the loop: all are read before anything is sent."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable

from kara_worker.http.ready_sockets import Listener, ReadySockets

WAIT_S = 20.0
Scenario = Callable[[ReadySockets], Awaitable[None]]


def run(scenario: Scenario) -> None:
    async def main() -> None:
        ready = ReadySockets(asyncio.get_running_loop())
        try:
            await asyncio.wait_for(scenario(ready), WAIT_S)
        finally:
            ready.close()
            ready.close()

    asyncio.run(main())


def test_what_is_deferred_waits_until_all_were_read() -> None:
    async def scenario(ready: ReadySockets) -> None:
        pairs = [socket.socketpair() for _ in range(5)]
        events: list[str] = []
        sent = asyncio.Event()

        def readable(ours: socket.socket) -> None:
            ours.recv(10)
            events.append("read")
            ready.defer(lambda: events.append("sent"))
            ready.defer(sent.set)

        for ours, theirs in pairs:
            theirs.send(b"x")
            ready.watch(ours.fileno(), lambda ours=ours: readable(ours))
        await sent.wait()
        assert events == ["read"] * 5 + ["sent"] * 5
        for ours, theirs in pairs:
            ready.unwatch(ours.fileno())
            ours.close()
            theirs.close()

    run(scenario)


def test_outside_of_a_round_what_is_deferred_comes_soon() -> None:
    async def scenario(ready: ReadySockets) -> None:
        called = asyncio.Event()
        ready.defer(called.set)
        await called.wait()

    run(scenario)


def test_a_socket_that_ended_in_this_round_is_not_read() -> None:
    async def scenario(ready: ReadySockets) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        called: list[int] = []
        done = asyncio.Event()

        def readable(number: int) -> None:
            """Ends the other one."""
            called.append(number)
            ready.unwatch(pairs[number][0].fileno())
            ready.unwatch(pairs[1 - number][0].fileno())
            ready.unwatch(pairs[1 - number][0].fileno())
            pairs[1 - number][0].close()
            ready.defer(done.set)

        for number, (ours, theirs) in enumerate(pairs):
            theirs.send(b"x")
            ready.watch(ours.fileno(), lambda number=number: readable(number))
        await done.wait()
        assert len(called) == 1
        for pair in pairs:
            for end in pair:
                end.close()

    run(scenario)


class Full:
    """A listening socket of a process that has run out of descriptors, and then has some again."""

    def __init__(self) -> None:
        self.real = socket.create_server(("127.0.0.1", 0))
        self.refusals = 1

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def accept(self) -> tuple[socket.socket, object]:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self.real.accept()


def test_a_listener_goes_on_when_there_are_descriptors_again() -> None:
    async def scenario(ready: ReadySockets) -> None:
        listening, accepted = Full(), asyncio.Event()
        peers: list[socket.socket] = []

        def accept(peer: socket.socket) -> None:
            peers.append(peer)
            accepted.set()

        listener = Listener(asyncio.get_running_loop(), ready, listening, accept)  # type: ignore[arg-type]
        client = socket.create_connection(listening.real.getsockname())
        await accepted.wait()
        assert listening.refusals == 0
        listener.close()
        listener.close()
        for one in (client, *peers):
            one.close()

    run(scenario)
