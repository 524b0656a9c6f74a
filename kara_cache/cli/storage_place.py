"""Which place `kara row` and `kara obj` speak of, and with which credentials."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kara_cache.cli.exit_code import UsageError
from kara_cache.errors import ConfigError
from kara_cache.kara_url import scheme_of
from kara_cache.secret_ref import Secret, refuse_literal_secrets
from kara_cache.storage.location import Location, open_location

_CHAIN = "kara::"
_WITH_KEYS = ("oss", "s3")
_KEYS = {"app_key": "KARA_APP_KEY", "app_secret": "KARA_APP_SECRET"}  # in the environment, if not given
_CLUSTER = ("cluster_name", "etcd_hosts", "worker_hosts", "token")


def open_place(arguments: argparse.Namespace) -> Location:
    """The location of `URL`; options of the command line win over the environment.

    Raises ConfigError for an option that this kind of place does not have, UsageError for no such kind.
    """
    url: str = arguments.url
    scheme = scheme_of(url.removeprefix(_CHAIN)) or "file"
    options: dict[str, Any] = {**store_options_of(arguments.store_option).get(scheme, {})}
    options |= _credentials(arguments, scheme, os.environ)
    if url.startswith(_CHAIN):
        given = {name: getattr(arguments, name) for name in _CLUSTER if getattr(arguments, name) is not None}
        options["kara"] = given | ({"file": arguments.config} if arguments.config else {})
    try:
        return open_location(url, **options)
    except ConfigError:
        raise
    except ValueError as exc:  # an unknown scheme
        raise UsageError(str(exc)) from exc


def store_options_of(pairs: Sequence[str]) -> dict[str, dict[str, str]]:
    """`--store-option s3.endpoint_url=...`: by scheme."""
    options: dict[str, dict[str, str]] = {}
    for pair in pairs:
        where, equals, value = pair.partition("=")
        scheme, dot, key = where.partition(".")
        if not equals or not dot:
            raise ConfigError(f"--store-option {where!r}: want SCHEME.KEY=VALUE")
        refuse_literal_secrets({key: value}, f"--store-option {where}")
        options.setdefault(scheme, {})[key] = value
    return options


def _credentials(
    arguments: argparse.Namespace, scheme: str, environment: Mapping[str, str]
) -> dict[str, str]:
    """Unlike other secrets these may stand on the command line, because documented lines have them there."""
    found: dict[str, str] = {}
    for key, variable in _KEYS.items():
        option, value = f"--{key.replace('_', '-')}", getattr(arguments, key)
        if value is None:
            if scheme in _WITH_KEYS and environment.get(variable):
                found[key] = f"env:{variable}"
            continue
        if scheme not in _WITH_KEYS:
            raise ConfigError(f"{option}: {scheme}:// has no keys; they are for {', '.join(_WITH_KEYS)}")
        if key == "app_secret" and Secret(value).is_literal:
            said = (
                f"kara: {option}: everybody on this machine can see it in ps; better env:NAME or file:/path"
            )
            print(said, file=sys.stderr)
        found[key] = value
    return found
