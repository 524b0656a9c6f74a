"""What an S3 request is about, and who sent it."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kara_cache.mount import Mount
from kara_worker.alluxio.s3_errors import S3Error
from kara_worker.alluxio.sigv4 import Incoming, Signed, verify
from kara_worker.alluxio_config import S3Key
from kara_worker.http.request import Request


@dataclass(frozen=True, slots=True)
class Caller:
    """`signed` is None for who was not asked."""

    signed: Signed | None
    writes: bool

    def require_write(self) -> None:
        """Raises S3Error."""
        if not self.writes:
            raise S3Error("AccessDenied", "this key, or an anonymous caller, may only read here")


@dataclass(frozen=True, slots=True)
class Target:
    """`mount` is None for the list of buckets, `key` "" for a bucket."""

    mount: Mount | None
    key: str
    query: Mapping[str, str]
    caller: Caller

    @property
    def bucket(self) -> str:
        return self.mount.name if self.mount is not None else ""

    @property
    def path(self) -> str:
        """The kara path; one slash at the end of the key is dropped."""
        return f"/{self.bucket}/{self.key.removesuffix('/')}"


Handler = Callable[[Request, Target], Coroutine[Any, Any, None]]
Routes = Mapping[str, tuple[str, Handler]]
"""By method: the name under which a request is counted, and who answers it."""


class S3Access:
    """Either every request is signed with one of `keys`, or nobody is asked."""

    def __init__(
        self,
        keys: Sequence[S3Key],
        *,
        anonymous: bool,
        anonymous_writes: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without keys, and not `anonymous` by name, the listener is on loopback of an open cluster."""
        self._keys = () if anonymous else tuple(keys)
        self._writes = anonymous_writes or not anonymous
        self._clock = clock

    @property
    def open(self) -> bool:
        return not self._keys

    def identify(self, request: Request) -> Caller:
        """Raises S3Error with the code that S3 gives."""
        if self.open:
            return Caller(None, self._writes)
        incoming = Incoming(request.method, request.target, request.headers)
        signed = verify(incoming, self._keys, self._clock())
        return Caller(signed, not signed.key.read_only)
