"""Frozen configuration from layers: defaults < TOML file < environment < explicit arguments.

A configuration is a frozen dataclass; a field whose type is a dataclass too is a group. Every leaf has one
flat key, the same in every layer: its name with the names of its groups in front (`tls`, `ca` ->
`tls_ca`, `KARA_TLS_CA`, `--tls-ca`). A group whose field has the metadata INLINE puts no name in front.
In a file, a group may also be a table of its name. What a value may look like follows from the key and
the type:

    ..._bytes        100GiB, 1_000, 4096                   (`quantity.parse_bytes`)
    ..._bytes_per_s  200MB, 1_000                          (the same)
    ..._s            7d, 250ms, 60                         (`quantity.parse_seconds`), but not ..._per_s
    tuple of text    "a,b" or a list
    bool             in the environment 1/0, true/false, yes/no, on/off
    a `parse`able    the text that its `parse` takes       (`Secret`, `Freshness`)

An empty environment variable counts as not set, and so do the service links that Kubernetes adds
(`KARA_PORT=tcp://...`). A variable that is no key is an error if it looks like a misspelt one; others are
left to the programs that they are meant for. Everywhere else an unknown key is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from kara_cache.errors import ConfigError
from kara_cache.quantity import parse_bytes, parse_seconds

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same library, before it joined the standard one

T = TypeVar("T")
_BOOLEANS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_SERVICE_LINK = re.compile(r"(?:tcp|udp|sctp)://")
_NEAR = 0.85  # difflib ratio: etcd_host is near etcd_hosts, workers (another program's) not near worker_hosts


INLINE: Mapping[str, Any] = {"inline": True}
"""The metadata of a field whose keys stand without its name in front."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Leaf:
    path: tuple[str, ...]  # attribute names from the root
    key: str
    kind: Any  # type without None
    optional: bool
    is_text: bool  # given as text that only its own `parse` understands


def layered(
    cls: type[T],
    *,
    file: str | Path | None = None,
    section: str = "",
    other_sections: Collection[str] = (),
    env: Mapping[str, str],
    prefix: str = "KARA_",
    other_keys: Collection[str] = (),
    flags: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> T:
    """An instance of `cls` from all layers.

    Args:
        file: TOML; `section` is the table to read, `other_sections` the ones that may stand beside it.
        env: usually `os.environ`; `prefix` + the key in capitals is looked up.
        other_keys: of another program that reads the same environment: no misspellings of ours.
        flags: by flat key, as text of a command line.
        overrides: by flat key, or a group's name with a mapping or an instance; None means not given.

    Raises:
        ConfigError: names the key, where it was read, what was expected and what was got.
    """
    leaves = {leaf.key: leaf for leaf in _leaves(cls)}
    values: dict[str, Any] = {}
    if file is not None:
        document = read_toml(file)
        known = {section, *other_sections}
        for name in document:
            if name not in known:
                raise ConfigError(f"{name!r} in {file}: unknown section{_nearest(name, known)}")
        values |= _from_mapping(cls, leaves, document.get(section, {}), f"[{section}] in {file}")
    values |= _from_env(leaves, env, prefix, other_keys)
    values |= {
        key: _convert(leaves[key], text, "flag", from_text=True) for key, text in (flags or {}).items()
    }
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    values |= _from_mapping(cls, leaves, given, "argument")
    return _assemble(cls, (), values, leaves.values())


def from_mapping(cls: type[T], document: Mapping[str, Any], source: str, **fixed: Any) -> T:
    """An instance from one table alone, by the rules above; `fixed` fields are passed as they are."""
    leaves = {leaf.key: leaf for leaf in _leaves(cls) if leaf.path[0] not in fixed}
    values = _from_mapping(cls, leaves, document, source)
    return _assemble(cls, (), values, leaves.values(), fixed)


def keys(cls: type[Any]) -> tuple[str, ...]:
    """Every flat key of a configuration, in the order of declaration."""
    return tuple(leaf.key for leaf in _leaves(cls))


def read_toml(file: str | Path) -> dict[str, Any]:
    """Raises ConfigError naming the file and, for a syntax error, the line."""
    try:
        document: dict[str, Any] = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"configuration file {file}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"configuration file {file}: {exc}") from exc
    return document


def _leaves(cls: type[Any], path: tuple[str, ...] = (), front: str = "") -> Iterator[_Leaf]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, optional = _without_none(hints[field.name])
        here = (*path, field.name)
        if _is_group(kind):
            yield from _leaves(kind, here, front if field.metadata.get("inline") else f"{front}{field.name}_")
        else:
            yield _Leaf(here, front + field.name, kind, optional, hasattr(kind, "parse"))


def _is_group(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) and not hasattr(kind, "parse")


def _without_none(hint: Any) -> tuple[Any, bool]:
    options = [option for option in get_args(hint) if option is not type(None)]
    if len(options) < len(get_args(hint)) and get_origin(hint) is not tuple:
        (kind,) = options  # unions of more than a type and None are not used in configurations
        return kind, True
    return hint, False


def _from_mapping(
    cls: type[Any], leaves: Mapping[str, _Leaf], document: object, source: str, front: str = ""
) -> dict[str, Any]:
    if not isinstance(document, Mapping):
        raise ConfigError(f"{source}: expected a table, got {document!r}")
    groups = dict(_groups(cls))
    values: dict[str, Any] = {}
    for name, value in document.items():
        key = front + str(name)
        if name in groups:
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            values |= _from_mapping(groups[name], leaves, value, f"{source}, {name}", f"{key}_")
        elif key in leaves:
            values[key] = _convert(leaves[key], value, source, from_text=False)
        else:
            raise ConfigError(f"{key!r} ({source}): unknown key{_nearest(key, leaves)}")
    return values


def _groups(cls: type[Any]) -> Iterator[tuple[str, type[Any]]]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, _ = _without_none(hints[field.name])
        if _is_group(kind):
            if field.metadata.get("inline"):
                yield from _groups(kind)
            else:
                yield field.name, kind


def _from_env(
    leaves: Mapping[str, _Leaf], env: Mapping[str, str], prefix: str, other_keys: Collection[str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in env.items():
        key = name.removeprefix(prefix).lower()
        if name != prefix + key.upper() or not text or _SERVICE_LINK.match(text):
            continue
        if key in leaves:
            values[key] = _convert(leaves[key], text, f"environment {name}", from_text=True)
        elif key not in other_keys and (near := difflib.get_close_matches(key, leaves, 1, _NEAR)):
            raise ConfigError(f"environment {name}: unknown key, did you mean {prefix}{near[0].upper()}?")
    return values


def _convert(leaf: _Leaf, value: Any, source: str, *, from_text: bool) -> Any:
    """The value in the leaf's type, or ConfigError with key, source, expected and got."""
    try:
        return _parse(leaf, value, from_text=from_text)
    except msgspec.ValidationError as exc:
        got = f"a {type(value).__name__}" if leaf.is_text else repr(value)
        expected = str(exc).partition(", got")[0].removeprefix("Expected ").replace("`", "")
        raise ConfigError(f"{leaf.key} ({source}): expected {expected}, got {got}") from exc
    except ValueError as exc:
        raise ConfigError(f"{leaf.key} ({source}): {exc}") from exc


def _parse(leaf: _Leaf, value: Any, *, from_text: bool) -> Any:
    kind = leaf.kind
    if value is None and leaf.optional:
        return None
    if leaf.is_text:
        return value if isinstance(value, kind) else kind.parse(msgspec.convert(value, str))
    if leaf.key.endswith(("_bytes", "_bytes_per_s")):
        return parse_bytes(value)
    if leaf.key.endswith("_s") and not leaf.key.endswith("_per_s"):
        return parse_seconds(value)
    if get_origin(kind) is tuple and isinstance(value, str):
        return tuple(part for item in value.split(",") if (part := item.strip()))
    if kind is bool and from_text:
        if value.lower() not in _BOOLEANS:
            raise ValueError(f"expected true or false, got {value!r}")
        return _BOOLEANS[value.lower()]
    return msgspec.convert(value, kind, strict=not from_text)


def _assemble(
    cls: type[T],
    path: tuple[str, ...],
    values: Mapping[str, Any],
    leaves: Iterable[_Leaf],
    fixed: Mapping[str, Any] | None = None,
) -> T:
    """Calls the constructors from the innermost group outwards; what no layer gave keeps its default."""
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = dict(fixed or {})
    depth = len(path)
    inside = [leaf for leaf in leaves if leaf.path[:depth] == path]
    for leaf in inside:
        if len(leaf.path) == depth + 1 and leaf.key in values:
            arguments[leaf.path[-1]] = values[leaf.key]
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # T is a dataclass by contract
        kind, _ = _without_none(hints[field.name])
        if _is_group(kind):
            arguments[field.name] = _assemble(kind, (*path, field.name), values, inside)
    return cls(**arguments)


def _nearest(key: str, known: Iterable[str]) -> str:
    candidates = sorted(known)
    near = difflib.get_close_matches(key, candidates, 1, 0.6)
    return f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(candidates)}"
