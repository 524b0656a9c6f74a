"""Tokens: what was minted is what verifies; everything else is denied, with a reason and without a leak."""

from __future__ import annotations

import base64
import hmac
import json
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import AccessDenied, ConfigError
from kara_cache.token import MAX_TOKEN_CHARACTERS, VERBS, Claims, Verb, mint, verify

SECRET = b"0123456789abcdef"
OLD = b"fedcba9876543210"
NOW = 1_000_000.0

subjects = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=30)
prefixes = st.lists(st.text("ab é%", min_size=1, max_size=5), max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)
verb_sets = st.frozensets(st.sampled_from(sorted(VERBS)), min_size=1)


def claims(*verbs: Verb, prefix: str = "/data", expires: int = int(NOW) + 60) -> Claims:
    return Claims(frozenset(verbs or ("read",)), prefix, expires, "job-7")


def signed(body: object, secret: bytes = SECRET) -> str:
    """A token with any payload and a right signature."""

    def encode(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    text = "kara1." + encode(raw)
    return f"{text}.{encode(hmac.digest(secret, text.encode(), 'sha256'))}"


@given(verb_sets, prefixes, st.integers(0, 2**40), subjects, st.binary(min_size=16, max_size=64))
def test_what_was_minted_verifies(
    verbs: frozenset[Verb], prefix: str, expires: int, subject: str, secret: bytes
) -> None:
    given_claims = Claims(verbs, prefix, expires, subject)
    assert verify(mint(secret, given_claims), [OLD, secret], expires - 1) == given_claims


def test_golden_token() -> None:
    """The format is a contract between processes of different releases."""
    token = mint(SECRET, Claims(frozenset({"write", "read"}), "/data/é", 1_000_060, "job-7"))
    assert token == (
        "kara1.eyJlIjoxMDAwMDYwLCJwIjoiL2RhdGEvw6kiLCJzIjoiam9iLTciLCJ2IjpbInJlYWQiLCJ3cml0ZSJdfQ."
        "o9iDcKbiKe3sB0QoZx_JgA9XaPSs-YfCcaJTEQlPlUk"
    )


def test_the_longest_token_fits() -> None:
    long = Claims(VERBS, "/" + '"' * 4095, 2**40, "\U0001f600" * 200)
    assert verify(mint(SECRET, long), [SECRET], NOW) == long


@given(st.data())
def test_any_change_is_denied(data: st.DataObject) -> None:
    token = mint(SECRET, claims())
    at = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.characters(codec="ascii").filter(lambda c: c != token[at]))
    with pytest.raises(AccessDenied):
        verify(token[:at] + letter + token[at + 1 :], [SECRET], NOW)
    with pytest.raises(AccessDenied):
        verify(token[:at], [SECRET], NOW)


@given(st.text(max_size=100))
def test_anything_else_is_denied(text: str) -> None:
    for token in (text, f"kara1.{text}", f"kara1.{text}.{text}"):
        with pytest.raises(AccessDenied):
            verify(token, [SECRET], NOW)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "missing"),
        ("x", "malformed"),
        ("kara2.a.b", "malformed"),
        ("kara1.é.b", "malformed"),
        ("kara1." + "a" * MAX_TOKEN_CHARACTERS + ".b", "malformed"),
        (mint(OLD, claims()), "signature"),
        (mint(SECRET, claims(expires=int(NOW) - 90)), "expired: 90 s ago"),
        (mint(SECRET, claims(expires=int(NOW))), "expired: 0 s ago"),
        (signed(b"\xff"), "malformed"),
        (signed(b"[" * 9000), "malformed"),
        (signed([]), "malformed"),
        (signed({}), "malformed"),
        (signed({"e": "1", "p": "/", "s": "", "v": ["read"]}), "malformed"),
        (signed({"e": 2**40, "p": "/", "s": "", "v": ["root"]}), "malformed"),
        (signed({"e": 2**40, "p": "/", "s": "", "v": []}), "malformed"),
        (signed({"e": 2**40, "p": "/a/..", "s": "", "v": ["read"]}), "malformed"),
        (signed({"e": 2**40, "p": "/", "s": "a\nb", "v": ["read"]}), "malformed"),
    ],
)
def test_each_reason_has_its_words_and_leaks_nothing(token: str, words: str) -> None:
    with pytest.raises(AccessDenied, match=f"^token {words}") as caught:
        verify(token, [SECRET], NOW)
    text = "".join(traceback.format_exception(caught.value, chain=True)).replace(__file__, "")
    shown = str(caught.value)
    assert SECRET.decode() not in text
    assert len(token) < 8 or token not in shown


def test_rotation() -> None:
    token = mint(OLD, claims())
    assert verify(token, [SECRET, OLD], NOW) == claims()
    with pytest.raises(AccessDenied, match="signature"):
        verify(token, [SECRET], NOW)


def test_weak_or_no_secrets_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 16 bytes, got 15"):
        mint(SECRET[1:], claims())
    with pytest.raises(ConfigError, match="at least 16 bytes"):
        verify(mint(SECRET, claims()), [b""], NOW)
    with pytest.raises(ConfigError, match="no secret"):
        verify(mint(SECRET, claims()), [], NOW)


@pytest.mark.parametrize(
    ("prefix", "path", "answer"),
    [
        ("/", "/anything/at/all", True),
        ("/", "/", True),
        ("/data", "/data", True),
        ("/data", "/data/", True),
        ("/data", "/data/a", True),
        ("/data/a", "/data", False),
        ("/data", "/database", False),
        ("/data", "/data2/a", False),
        ("/data", "/", False),
        ("/data", "/Data/a", False),
    ],
)
def test_scope_ends_at_segments(prefix: str, path: str, answer: bool) -> None:
    assert claims("read", prefix=prefix).allows("read", path) is answer


@pytest.mark.parametrize("path", ["/data/../other", "/data//x", "data/x", "/data/\0", "/data/."])
def test_scope_of_a_path_that_is_nowhere(path: str) -> None:
    with pytest.raises(ValueError):
        claims("read").allows("read", path)


@given(verb_sets, st.sampled_from(sorted(VERBS)))
def test_no_verb_implies_another(held: frozenset[Verb], wanted: Verb) -> None:
    assert Claims(held, "/", 1, "").allows(wanted, "/x") is (wanted in held)


def test_require_says_what_was_wanted_and_what_is_held() -> None:
    claims("read", "write").require("write", "/data/x")
    with pytest.raises(AccessDenied, match=r"wanted admin on '/data/x', held read\+write below '/data'"):
        claims("read", "write").require("admin", "/data/x")


@pytest.mark.parametrize(
    ("verbs", "prefix", "subject"),
    [
        (frozenset(), "/", ""),
        (frozenset({"root"}), "/", ""),
        (VERBS, "data", ""),
        (VERBS, "/data/", ""),
        (VERBS, "/../x", ""),
        (VERBS, "/", "a\nb"),
        (VERBS, "/", "x" * 201),
    ],
)
def test_impossible_claims(verbs: frozenset[Verb], prefix: str, subject: str) -> None:
    with pytest.raises(ValueError):
        Claims(verbs, prefix, 1, subject)
