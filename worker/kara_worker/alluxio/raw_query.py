"""Queries in which a client pasted paths as they are: `?ufsFullPath=s3://b/a&b=1.txt&offset=0&length=9`.

The published clients interpolate paths into most URLs and leave quoting to their HTTP library, which
keeps `&`, `=`, `+` and every `%` that looks like an escape. So a path goes on up to the keys that are
known to follow it, and nothing but the id in the URL (SHA-256 of the path) can tell `%20` from a space.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from urllib.parse import unquote, unquote_plus


def split_path(raw: str, key: str, others: Collection[str]) -> tuple[str | None, dict[str, str]]:
    """The raw value of `key`, None where it is missing, and the decoded values of `others` around it.

    A path that itself ends in `&offset=1` is read wrong; every other one is read whole.
    """
    if not raw.startswith(f"{key}="):
        front, found, rest = raw.partition(f"&{key}=")
        if not found:
            return None, form_values(raw)
    else:
        front, rest = "", raw[len(key) + 1 :]
    path, values = _split_tail(rest, others)
    return path, {**form_values(front), **values}


def split_two_paths(
    raw: str, first: str, second: str, others: Collection[str]
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """All ways to read `first=A&second=B` as two raw paths (the shortest A first), and the rest."""
    if not raw.startswith(f"{first}="):
        return [], form_values(raw)
    rest, values = _split_tail(raw[len(first) + 1 :], others)
    separator = f"&{second}="
    ways, at = [], rest.find(separator)
    while at >= 0:
        ways.append((rest[:at], rest[at + len(separator) :]))
        at = rest.find(separator, at + 1)
    return ways, values


def spellings(raw: str) -> Iterator[str]:
    """What a raw path may stand for: decoded, which is nearly always right, then as it stands."""
    try:
        decoded = unquote(raw, errors="strict")
    except UnicodeDecodeError:
        decoded = raw
    yield decoded
    if decoded != raw:
        yield raw


def form_values(raw: str) -> dict[str, str]:
    """Keys and values of a properly encoded query, where a plus is a space. A repeated key: the last one."""
    values = {}
    for pair in raw.split("&"):
        key, equals, value = pair.partition("=")
        if equals:
            values[unquote_plus(key)] = unquote_plus(value)
    return values


def _split_tail(text: str, others: Collection[str]) -> tuple[str, dict[str, str]]:
    values: dict[str, str] = {}
    while True:
        path, ampersand, last = text.rpartition("&")
        key, equals, value = last.partition("=")
        if not ampersand or not equals or key not in others:
            return text, values
        values.setdefault(key, unquote_plus(value))
        text = path
