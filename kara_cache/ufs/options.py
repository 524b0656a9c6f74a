"""Options of a store: from the mapping of a mount to the frozen type the store declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from kara_cache.errors import ConfigError

_Options = TypeVar("_Options", bound=msgspec.Struct)


def parse_options(options: Mapping[str, Any], kind: type[_Options], *, url: str) -> _Options:
    """The options as `kind`, a frozen msgspec.Struct with `forbid_unknown_fields=True`.

    Lax about spelling, because flags and environment carry text: "30" is a number where one is due.
    `url` is for the message only; pass the one without secrets.

    Raises:
        ConfigError: an unknown key, or a value of another type.
    """
    try:
        return msgspec.convert(dict(options), kind, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(sorted(kind.__struct_fields__)) or "none"
        raise ConfigError(f"options of {url}: {error}; known options: {known}") from error
