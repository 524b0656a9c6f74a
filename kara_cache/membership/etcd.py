"""etcd v3 through its JSON gateway (`/v3/*`, etcd 3.4 or newer): the few calls that membership needs.

The gateway rather than gRPC: of the gRPC and Rust clients tried, every one hung after `fork()` or
never recovered from a restart of the server. Plain HTTP does both.

With etcd's authentication on *and* client certificates required, a client certificate must have an
empty CommonName (names in the SAN are fine): etcd refuses every other one with "CommonName of client
sending a request against gateway will be ignored", so that nobody takes it for the user's name.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import requests
import requests.adapters
import urllib3.exceptions

from kara_cache.errors import ConfigError, MembershipError
from kara_cache.membership.etcd_json import (
    Delete,
    JsonObject,
    KeyEvent,
    KeyValue,
    Put,
    Range,
    Refused,
    TxnResult,
    Unchanged,
    Unreachable,
    decode_answer,
    decode_event,
    decode_header,
    decode_txn,
    encode,
    error_of,
    parse_endpoints,
    prefix_end,
)

MAX_ANSWER_BYTES = 64 << 20  # ten thousand workers are about 20 MiB


class Compacted(MembershipError):
    """etcd has not all events since the revision asked for, or lives in its past: read everything again."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for `https://` endpoints."""

    ca: str = ""  # who may have signed the servers' certificates; "" means the system's authorities
    cert: str = ""  # our certificate, where etcd asks for one; see the module about its CommonName
    key: str = ""
    verify_hostname: bool = True  # False: who signed a certificate is checked, not whose name is in it


class EtcdClient:
    """Calls on one etcd cluster. Thread-safe, usable after fork(), connects when it is first used.

    A call ends within about `timeout_s` (name resolution aside), in which each endpoint is tried at most
    once, the one that answered last first. A call that failed may still have taken effect: make
    writes conditional, and look before assuming. All failures are MembershipError; its message names
    the endpoints and the cause, never the password. Proxies and ~/.netrc of the environment are not used.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        username: str = "",
        password: str | Callable[[], str] = "",
        tls: TlsFiles | None = None,
        connect_timeout_s: float = 2.0,
        timeout_s: float = 5.0,
    ) -> None:
        """A function as `password` is asked for each new token, so that a rotated one takes effect."""
        if bool(username) != bool(password):
            raise ConfigError("etcd_username and etcd_password go together: only one of them is set")
        self._endpoints = list(parse_endpoints(endpoints))
        random.SystemRandom().shuffle(self._endpoints)  # a thousand clients should not all load the first one
        self.connect_timeout_s = connect_timeout_s
        self.timeout_s = timeout_s
        self._username = username
        self._password = password
        self._tls = tls or TlsFiles()
        self._token = ""
        self._http: tuple[int, requests.Session] | None = None
        # Sessions of a parent process. Dropping one would run its pool's clean-up, which takes a lock
        # that another thread of the parent may have held when we were forked.
        self._inherited: list[requests.Session] = []

    def __repr__(self) -> str:
        return f"<EtcdClient {', '.join(self._endpoints)}>"

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(self._endpoints)

    @property
    def endpoint(self) -> str:
        """The one that answered last, and is asked first next time."""
        return self._endpoints[0]

    def close(self) -> None:
        """Closes idle connections of this process; a later call opens new ones."""
        http, self._http = self._http, None
        if http is not None and http[0] == os.getpid():
            http[1].close()

    def get(self, key: str) -> KeyValue | None:
        items = self.txn(then=[Range(key)]).found[0].items
        return items[0] if items else None

    def list(self, prefix: str) -> tuple[KeyValue, ...]:
        return self.txn(then=[Range(prefix, prefix=True)]).found[0].items

    def put(self, key: str, value: bytes, *, lease: int = 0) -> None:
        self.txn(then=[Put(key, value, lease)])

    def delete(self, key: str) -> None:
        """Does nothing where nothing is."""
        self.txn(then=[Delete(key)])

    def txn(
        self, compare: Sequence[Unchanged] = (), *, then: Sequence[Range | Put | Delete] = ()
    ) -> TxnResult:
        """All of `then` at one revision if every condition holds, else nothing."""
        body: JsonObject = {
            "compare": [condition.comparison() for condition in compare],
            "success": [operation.operation() for operation in then],
        }
        return decode_txn(self.call("/v3/kv/txn", body))

    def grant(self, ttl_s: int) -> int:
        """A new lease's id."""
        return int(self.call("/v3/lease/grant", {"TTL": str(ttl_s)})["ID"])

    def keepalive(self, lease: int) -> int:
        """Seconds the lease now has, 0 when it is gone."""
        answer = self.call("/v3/lease/keepalive", {"ID": str(lease)})
        return int(answer.get("result", {}).get("TTL", 0))

    def time_to_live(self, lease: int) -> int:
        """Whole seconds left, rounded down; -1 when the lease is gone."""
        return int(self.call("/v3/lease/timetolive", {"ID": str(lease)}).get("TTL", 0))

    def revoke(self, lease: int) -> None:
        """Ends the lease and deletes its keys; one that is gone already is no error."""
        try:
            self.call("/v3/lease/revoke", {"ID": str(lease)})
        except MembershipError as exc:
            if "requested lease not found" not in str(exc):
                raise

    def watch(self, prefixes: Sequence[str], start_revision: int, *, idle_timeout_s: float) -> Watch:
        """Changes of keys with these prefixes from `start_revision` on, over one connection."""
        return Watch(self, tuple(prefixes), start_revision, idle_timeout_s)

    def call(self, path: str, body: JsonObject) -> JsonObject:
        """One request in the gateway's own terms, for what has no method here."""
        deadline = time.monotonic() + self.timeout_s
        endpoints, failures = self._endpoints, []
        for tried, endpoint in enumerate(endpoints):
            # A silent endpoint may use up its share only, so that the others get their turn.
            share_s = (deadline - time.monotonic()) / (len(endpoints) - tried)
            try:
                answer = self._call_one(endpoint, path, body, time.monotonic() + share_s)
            except Unreachable as exc:
                failures.append(f"{endpoint}: {exc}")
                continue
            except Refused as exc:
                raise MembershipError(f"etcd at {endpoint} refuses {path}: {exc}") from None
            if tried:
                self._endpoints = [endpoint, *(other for other in endpoints if other != endpoint)]
            return answer
        raise MembershipError(
            f"no etcd endpoint answers {path} (timeout {self.timeout_s:g} s): {'; '.join(failures)}"
        )

    def _call_one(self, endpoint: str, path: str, body: JsonObject, deadline: float) -> JsonObject:
        try:
            return self._exchange(endpoint, path, body, deadline, self._authorization(endpoint, deadline))
        except Refused as exc:
            if not (self._username and exc.token_trouble):
                raise
        # The token expired, or etcd was restarted and forgot it: simple tokens live in memory.
        self._token = ""
        return self._exchange(endpoint, path, body, deadline, self._authorization(endpoint, deadline))

    def _authorization(self, endpoint: str, deadline: float) -> dict[str, str]:
        """Headers that say who we are; gets a token first when there is none."""
        if not self._username:
            return {}
        if not self._token:
            who = {"name": self._username, "password": self._reveal()}
            self._token = str(self._exchange(endpoint, "/v3/auth/authenticate", who, deadline, {})["token"])
        return {"Authorization": self._token}

    def _reveal(self) -> str:
        try:
            return self._password() if callable(self._password) else self._password
        except ConfigError as exc:  # its file is gone, say: as lasting as a wrong password
            raise Refused(f"etcd_password: {exc}", 0) from None

    def _exchange(
        self, endpoint: str, path: str, body: JsonObject, deadline: float, headers: dict[str, str]
    ) -> JsonObject:
        left_s = max(deadline - time.monotonic(), 0.001)
        try:
            with self._post(endpoint + path, json.dumps(body), headers, left_s) as response:
                return decode_answer(response.status_code, _read(response, deadline))
        except requests.RequestException as exc:
            raise Unreachable(_cause(exc)) from None

    def open_stream(self, path: str, body: str, read_timeout_s: float) -> requests.Response:
        """A response to be read as it comes, from the endpoint that answered last. For `Watch`."""
        endpoint = self.endpoint
        try:
            headers = self._authorization(endpoint, time.monotonic() + self.timeout_s)
            # Without a leader a member would go on showing a quiet stream: have it ended instead.
            headers["Grpc-Metadata-hasleader"] = "true"
            return self._post(endpoint + path, body, headers, read_timeout_s)
        except (Unreachable, Refused, requests.RequestException) as exc:
            cause = _cause(exc) if isinstance(exc, requests.RequestException) else exc
            raise MembershipError(f"etcd at {endpoint}: {path}: {cause}") from None

    def _post(self, url: str, body: str, headers: dict[str, str], read_timeout_s: float) -> requests.Response:
        timeout = (min(self.connect_timeout_s, read_timeout_s), read_timeout_s)
        return self._session().post(
            url, data=body, headers=headers, timeout=timeout, stream=True, allow_redirects=False
        )

    def _session(self) -> requests.Session:
        """This process's connection pool; two threads that come first at once may make one too many."""
        pid, http = os.getpid(), self._http
        if http is not None and http[0] == pid:
            return http[1]
        if http is not None:
            self._inherited.append(http[1])
        session = requests.Session()
        session.trust_env = False
        session.verify = self._tls.ca or True
        if not self._tls.verify_hostname:
            session.mount("https://", _AnyHostname())
        if self._tls.cert:
            session.cert = (self._tls.cert, self._tls.key) if self._tls.key else self._tls.cert
        session.headers["Content-Type"] = "application/json"
        self._http = (pid, session)
        return session


class _AnyHostname(requests.adapters.HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # Any: passed on as requests gave them
        super().init_poolmanager(*args, **kwargs, assert_hostname=False)


class Watch:
    """Iterated by one thread, cancelled by any; yields the events of one message at a time.

    The first item is empty and says that etcd has begun to watch. Iteration ends when nothing came
    for `idle_timeout_s` (a quiet cluster and a dead connection look the same: ask, then watch again)
    or after `cancel()`.

    Raises, while iterating:
        Compacted: the events since `start_revision` are not all kept any more, or etcd went back behind it.
        MembershipError: the connection broke, etcd lost its leader, or refused.
    """

    def __init__(
        self, client: EtcdClient, prefixes: tuple[str, ...], start_revision: int, idle_timeout_s: float
    ) -> None:
        self._client = client
        self._prefixes = prefixes
        self._start_revision = start_revision
        self._idle_timeout_s = idle_timeout_s
        self._response: requests.Response | None = None
        self._pid = os.getpid()
        self._cancelled = False

    def cancel(self) -> None:
        """Ends the iteration now; with urllib3 before 2.3 when the idle timeout is over."""
        self._cancelled = True
        response = self._response
        # In a forked child the connection is the parent's: shutting it down would end the parent's watch.
        if response is not None and self._pid == os.getpid():
            with contextlib.suppress(AttributeError, ValueError, RuntimeError, OSError):
                response.raw.shutdown()

    def __iter__(self) -> Iterator[tuple[KeyEvent, ...]]:
        # Several requests in one body: the gateway hands each to etcd, which answers all in one stream.
        body = "\n".join(self._create_request(prefix) for prefix in self._prefixes)
        try:
            with self._client.open_stream("/v3/watch", body, self._idle_timeout_s) as response:
                self._response = response
                yield from self._messages(response)
        except requests.RequestException as exc:
            idle = bool(exc.args) and isinstance(exc.args[0], urllib3.exceptions.ReadTimeoutError)
            if not (idle or self._cancelled):
                raise MembershipError(
                    f"etcd at {self._client.endpoint}: watch broke: {_cause(exc)}"
                ) from None
        finally:
            self._response = None

    def _create_request(self, prefix: str) -> str:
        wanted = {
            "key": encode(prefix),
            "range_end": prefix_end(prefix),
            "start_revision": str(self._start_revision),
        }
        return json.dumps({"create_request": wanted})

    def _messages(self, response: requests.Response) -> Iterator[tuple[KeyEvent, ...]]:
        waiting = len(self._prefixes)
        for line in response.iter_lines(1 << 16):
            if self._cancelled:
                return
            result = self._result(line)
            if result.get("canceled"):
                raise self._ended(result)
            if result.get("created"):
                self._check_not_ahead(result)
                waiting -= 1
                if not waiting:
                    yield ()
            elif result.get("events"):
                yield tuple(map(decode_event, result["events"]))
        if not self._cancelled:
            raise MembershipError(f"etcd at {self._client.endpoint}: watch closed by the server")

    def _result(self, line: bytes) -> JsonObject:
        try:
            message = json.loads(line)
            if "result" in message:
                return dict(message["result"])
            reason = error_of(message)[0]
        except (ValueError, TypeError, AttributeError):
            reason = f"not a message of etcd: {line[:200]!r}"
        raise MembershipError(f"etcd at {self._client.endpoint}: watch: {reason}")

    def _check_not_ahead(self, created: JsonObject) -> None:
        """An etcd that lost data would keep silent until it has caught up with the revision we want."""
        revision = decode_header(created).revision
        if revision < self._start_revision - 1:
            raise Compacted(f"etcd is at revision {revision}, asked from {self._start_revision}")

    def _ended(self, result: JsonObject) -> MembershipError:
        compacted = int(result.get("compact_revision", 0))
        if compacted:
            return Compacted(
                f"etcd keeps nothing before revision {compacted}, asked from {self._start_revision}"
            )
        reason = result.get("cancel_reason") or "no reason given"
        return MembershipError(f"etcd at {self._client.endpoint} ended the watch: {reason}")


def _read(response: requests.Response, deadline: float) -> bytes:
    """The body, by the deadline even when it comes in drops, and no more than MAX_ANSWER_BYTES."""
    body = bytearray()
    for chunk in response.iter_content(1 << 16):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise Unreachable(f"answer exceeds {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise Unreachable("answer is too slow")
    return bytes(body)


def _cause(exc: requests.RequestException) -> str:
    """The innermost reason in one line: urllib3 nests it three deep. A request's body is never in it."""
    inner: BaseException = exc
    while True:
        reason = getattr(inner, "reason", None)
        nested = reason if isinstance(reason, BaseException) else inner.args[0] if inner.args else None
        if not isinstance(nested, BaseException):
            return str(inner)[:300] or type(inner).__name__
        inner = nested
