"""Secrets by reference: configuration says where a secret is, never what it is.

env:NAME      the environment variable NAME
file:/path    a file, for instance a mounted Kubernetes secret; one secret a line, the first one counts
anything else the secret itself; refused on a command line, where `ps` shows it to everyone
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from kara_cache.errors import ConfigError

_SECRET_KEY = re.compile(r"secret|password|passwd|token|credential|key", re.IGNORECASE)
_MAX_FILE_BYTES = 64 << 10


class Secret:
    """A reference to a secret, read at each `reveal`, so that a rotated file takes effect.

    Neither `repr` nor `str` nor a format shows a literal. Pickling keeps the reference (a literal goes
    along as it is), so that a process started by spawn finds the secret in its own environment.
    """

    __slots__ = ("_reference",)

    def __init__(self, reference: str) -> None:
        if not reference:
            raise ConfigError("secret: empty; want env:NAME, file:/path or the secret itself")
        self._reference = reference

    @classmethod
    def parse(cls, text: str) -> Secret:
        """The reference; nothing is read yet."""
        return cls(text)

    @property
    def is_literal(self) -> bool:
        return not self._reference.startswith(("env:", "file:"))

    def reveal(self) -> str:
        """The secret. Raises ConfigError naming the variable or file, never its content."""
        return self.reveal_all()[0]

    def reveal_all(self) -> tuple[str, ...]:
        """All lines of the file, for the time of a rotation: new work uses the first, all are accepted."""
        kind, _, where = self._reference.partition(":")
        if self.is_literal:
            return (self._reference,)
        if kind == "file":
            return _lines(where)
        value = os.environ.get(where, "")
        if not value:
            raise ConfigError(f"secret env:{where}: the variable is not set or empty")
        return (value,)

    def __repr__(self) -> str:
        return "Secret(***)" if self.is_literal else f"Secret({self._reference})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._reference == other._reference

    def __hash__(self) -> int:
        return hash(self._reference)


def resolve_secret(reference: str) -> Secret:
    """A secret that could be read just now. Raises ConfigError where it cannot."""
    secret = Secret(reference)
    secret.reveal()
    return secret


def is_secret_key(key: str) -> bool:
    """Whether an option of this name may hold a secret: better one too many."""
    return _SECRET_KEY.search(key) is not None


def resolve_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Store options with every `env:` and `file:` reference replaced by what it refers to.

    For the process that opens the store, just before it does; the result must not be logged or kept.
    `file://...` is left alone where the name of the option does not speak of a secret: it is a URL.
    Raises ConfigError naming the option.
    """
    resolved = dict(options)
    for key, value in options.items():
        if not isinstance(value, str) or (value.startswith("file://") and not is_secret_key(key)):
            continue
        if value.startswith(("env:", "file:")):
            try:
                resolved[key] = Secret(value).reveal()
            except ConfigError as exc:
                raise ConfigError(f"option {key}: {exc}") from exc
    return resolved


def refuse_literal_secrets(options: Mapping[str, Any], source: str) -> None:
    """For options from a command line. Raises ConfigError for a secret that stands there in the open."""
    for key, value in options.items():
        if isinstance(value, str) and value and is_secret_key(key) and Secret(value).is_literal:
            raise ConfigError(
                f"option {key} ({source}): a command line is visible to every user of the machine; "
                f"give {key}=env:NAME or {key}=file:/path instead of the secret"
            )


def _lines(path: str) -> tuple[str, ...]:
    if not os.path.isabs(path):
        raise ConfigError(f"secret file:{path}: want an absolute path")
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_FILE_BYTES).decode()
    except OSError as exc:
        raise ConfigError(f"secret file:{path}: {exc.strerror}") from exc
    except UnicodeDecodeError:
        # The original error would show the bytes in a traceback.
        raise ConfigError(f"secret file:{path}: not UTF-8 text") from None
    lines = tuple(line for raw in text.splitlines() if (line := raw.strip()))
    if not lines:
        raise ConfigError(f"secret file:{path}: the file is empty")
    return lines
