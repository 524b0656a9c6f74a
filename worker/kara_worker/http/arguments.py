"""Arguments in the query of a request, checked. Every function raises ValueError, naming the argument."""

from __future__ import annotations

import math

from kara_worker.http.request import Request


def text(request: Request, key: str) -> str:
    try:
        return request.query[key]
    except KeyError:
        raise ValueError(f"{request.path}: argument {key!r} is missing") from None


def number(request: Request, key: str, default: int | None = None) -> int:
    """Zero or more; `default` where the argument may be missing and is."""
    if default is not None and key not in request.query:
        return default
    value = text(request, key)
    if not value.isascii() or not value.isdigit() or len(value) > 18:
        raise ValueError(f"{request.path}: {key}={value[:40]!r} is not a number of bytes")
    return int(value)


def max_age_s(request: Request) -> float:
    """How old facts and listings may be for this caller, who may have changed something since: `age`."""
    value = request.query.get("age")
    if value is None:
        return math.inf
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise ValueError(f"{request.path}: age={value[:40]!r} is not a number of seconds")
    return seconds
