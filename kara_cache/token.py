"""Short-lived tokens with a scope, signed with a secret that workers and token givers share.

    token     = "kara1." payload "." signature
    payload   = base64url, without padding, of JSON {"e": expires, "p": prefix, "s": subject, "v": [verbs]}
    signature = base64url, without padding, of HMAC-SHA256(secret, "kara1." payload)

The signature covers the text that travelled, and is checked before anything in it is parsed. No message
of this module holds a token or a secret.
"""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from kara_cache.errors import AccessDenied, ConfigError
from kara_cache.mount import is_below, normalize_path

Verb = Literal["read", "write", "admin"]
VERBS: frozenset[Verb] = frozenset(get_args(Verb))
MIN_SECRET_BYTES = 16  # 128 bits; RFC 2104 asks for no less than the security that is wanted
MAX_TOKEN_CHARACTERS = 12 << 10  # a prefix of 4096 quotation marks, escaped, in base64, and the rest
_PREFIX = "kara1."
_MAX_SUBJECT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token allows: `verbs`, none implying another, at and below `prefix`, until `expires`."""

    verbs: frozenset[Verb]
    prefix: str  # "/" is everything
    expires: int  # seconds since the epoch; not valid at this second any more
    subject: str  # who, for logs

    def __post_init__(self) -> None:
        if not self.verbs or not self.verbs <= VERBS:
            raise ValueError(f"token verbs: want some of {_names(VERBS)}, got {_names(self.verbs) or 'none'}")
        if normalize_path(self.prefix) != self.prefix:
            raise ValueError(f"token prefix {self.prefix!r}: want it without a slash at the end")
        if len(self.subject) > _MAX_SUBJECT_CHARACTERS or not self.subject.isprintable():
            raise ValueError(f"token subject: want at most {_MAX_SUBJECT_CHARACTERS} printable characters")

    def allows(self, verb: Verb, path: str) -> bool:
        """Whether the scope covers it; ends at segment borders, so `/a` covers `/a/b` and not `/ab`.

        Raises ValueError for a path that `normalize_path` refuses: `/a/../b` is nowhere.
        """
        return verb in self.verbs and is_below(normalize_path(path), self.prefix)

    def require(self, verb: Verb, path: str) -> None:
        """Raises AccessDenied that says what was wanted and what is held."""
        if not self.allows(verb, path):
            raise AccessDenied(
                f"token scope: wanted {verb} on {path!r}, held {_names(self.verbs)} below {self.prefix!r}"
            )


def mint(secret: bytes, claims: Claims) -> str:
    """A token for these claims. Raises ConfigError for a secret shorter than 16 bytes."""
    body = {"e": claims.expires, "p": claims.prefix, "s": claims.subject, "v": sorted(claims.verbs)}
    signed = _PREFIX + _encode(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
    return f"{signed}.{_signature(secret, signed)}"


def verify(token: str, secrets: Sequence[bytes], now: float) -> Claims:
    """The claims of a token that one of `secrets` signed and that is still valid at `now`.

    Several secrets allow rotation: accept the new one everywhere, mint with it, then drop the old one.
    Raises AccessDenied: missing, malformed, signature or expired. Raises ConfigError without a usable secret.
    """
    if not secrets:
        raise ConfigError("token: no secret to verify with")
    if not token:
        raise AccessDenied("token missing: send Authorization: Bearer <token>")
    signed, dot, signature = token.rpartition(".")
    if len(token) > MAX_TOKEN_CHARACTERS or not dot or not signed.startswith(_PREFIX) or not token.isascii():
        raise AccessDenied("token malformed: want kara1.<payload>.<signature>")
    # All secrets are tried, so that the time does not tell which one was right.
    matches = [hmac.compare_digest(_signature(secret, signed), signature) for secret in secrets]
    if not any(matches):
        raise AccessDenied("token signature: made with another secret, or the token was changed")
    claims = _decode(signed.removeprefix(_PREFIX))
    if now >= claims.expires:
        raise AccessDenied(f"token expired: {now - claims.expires:.0f} s ago (clocks must agree)")
    return claims


def _decode(payload: str) -> Claims:
    try:
        body = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        expires, prefix, subject, verbs = body["e"], body["p"], body["s"], body["v"]
        if not isinstance(expires, int) or not isinstance(prefix, str) or not isinstance(subject, str):
            raise TypeError("field of another type")
        return Claims(frozenset(verbs), prefix, expires, subject)
    except (ValueError, KeyError, TypeError, RecursionError):
        # The signature was right, so its giver speaks another version. The cause would show the payload.
        raise AccessDenied("token malformed: signed, but not a payload of this version") from None


def _signature(secret: bytes, signed: str) -> str:
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(f"token secret: want at least {MIN_SECRET_BYTES} bytes, got {len(secret)}")
    return _encode(hmac.digest(secret, signed.encode(), "sha256"))


def _encode(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _names(verbs: Iterable[str]) -> str:
    return "+".join(sorted(verbs))
