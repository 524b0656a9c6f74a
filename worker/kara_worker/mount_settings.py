"""Mounts as an operator writes them: [mounts.NAME] tables of a file, --mount and --mount-option flags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kara_cache.errors import ConfigError
from kara_cache.layered import from_mapping, read_toml
from kara_cache.mount import Mount, MountTable, redact_url
from kara_cache.secret_ref import refuse_literal_secrets


def mounts_in(file: str | Path) -> MountTable:
    """The [mounts.NAME] tables of a TOML file, keyed like the fields of `Mount`. Raises ConfigError."""
    tables = read_toml(file).get("mounts", {})
    if not isinstance(tables, Mapping):
        raise ConfigError(f"mounts in {file}: want tables [mounts.NAME], got {tables!r}")
    return MountTable(_mount(name, table, f"[mounts.{name}] in {file}") for name, table in tables.items())


def mounts_from_flags(mounts: Iterable[str], options: Iterable[str] = ()) -> MountTable:
    """From `NAME=URL` and `NAME.KEY=VALUE`; KEY is an option of the store.

    Raises ConfigError, also for a literal secret: other users see the command line.
    """
    urls = MountTable(Mount.parse(text) for text in mounts)
    given: dict[str, dict[str, Any]] = {mount.name: {} for mount in urls}
    for text in options:
        where, equals, value = text.partition("=")
        # Names of mounts may hold dots, names of options do not.
        name, dot, key = where.rpartition(".")
        if not equals or not dot or not key or name not in given:
            raise ConfigError(f"--mount-option {where!r}: want NAME.KEY=VALUE of a --mount NAME=URL")
        given[name][key] = value
    for name, table in given.items():
        refuse_literal_secrets(table, f"--mount-option of {name}")
    return MountTable(Mount(mount.name, mount.url, given[mount.name]) for mount in urls)


def overlay(below: MountTable, above: MountTable) -> MountTable:
    """All mounts of both; where a name is in both, the one from `above`."""
    return MountTable({mount.name: mount for mount in (*below, *above)}.values())


def _mount(name: str, table: object, source: str) -> Mount:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{source}: want a table with url, got {redact_url(str(table))!r}")
    if "url" not in table:
        raise ConfigError(f"{source}: url is missing")
    return from_mapping(Mount, table, source, name=name)
