"""How objects become the bytes of a row, and back.

    JSONSerializer      the default; the bytes that the published package writes
    MsgpackSerializer   smaller and faster, and keeps bytes as they are
    NoSerializer        rows are bytes already
    PickleSerializer    any Python object; only for rows that you wrote yourself, since reading runs code

A serializer of your own derives from `Serializer`. Serializers travel to the workers of a DataLoader, so
they must pickle.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import msgspec

from kara_cache.errors import ConfigError

Buffer = bytes | bytearray | memoryview

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1  # what orjson takes, and gives back as an int
_SAFE = frozenset({str, float, bool, type(None)})
_STRINGS = frozenset({str})
_INTS = frozenset({int})


class Serializer:
    """The base of all. Thread-safe where rows are read by several threads."""

    takes_buffers = False
    """Whether `deserialize` takes any buffer; otherwise rows are copied to bytes where they are not yet."""

    quick: Callable[[Buffer], Any] | None = None
    """Does what `deserialize` does for most rows, and raises ValueError for the others. Called first."""

    def serialize(self, x: Any) -> bytes:
        raise NotImplementedError(f"{type(self).__name__} does not define serialize")

    def deserialize(self, x: bytes) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not define deserialize")


class JSONSerializer(Serializer):
    """Compact UTF-8, keys in their order, tuples as lists, NaN and infinities as null: as orjson writes it.

    What JSON cannot give back is a TypeError: bytes, sets, keys that are not str, ints beyond 64 bits,
    and types such as datetime, which two libraries would write in two ways.
    """

    takes_buffers = True

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder(enc_hook=_plain).encode
        self.quick = msgspec.json.Decoder().decode

    def serialize(self, x: Any) -> bytes:
        """Raises TypeError naming what cannot be written."""
        _check(x)
        try:
            return self._encode(x)
        except UnicodeEncodeError as exc:
            raise TypeError(f"JSON: a str with a lone surrogate: {exc}") from exc

    def deserialize(self, x: Buffer) -> Any:
        """Raises ValueError."""
        assert self.quick is not None
        try:
            return self.quick(x)
        except ValueError as exc:
            return _leniently(x, exc)

    def __reduce__(self) -> tuple[Callable[[], JSONSerializer], tuple[()]]:
        return type(self), ()


class MsgpackSerializer(Serializer):
    """MessagePack (https://msgpack.org). Keys may be numbers, and bytes stay bytes; tuples become lists."""

    takes_buffers = True

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder().decode

    def serialize(self, x: Any) -> bytes:
        """Raises TypeError naming what cannot be written."""
        return self._encode(x)

    def deserialize(self, x: Buffer) -> Any:
        """Raises ValueError."""
        return self._decode(x)

    def __reduce__(self) -> tuple[Callable[[], MsgpackSerializer], tuple[()]]:
        return type(self), ()


class NoSerializer(Serializer):
    """Rows are bytes."""

    def serialize(self, x: bytes) -> bytes:
        """Raises TypeError for anything but bytes."""
        if not isinstance(x, bytes):
            raise TypeError(
                "Serializer is required if you want to write Object data: "
                f"expected bytes, got {type(x).__name__}"
            )
        return x

    def deserialize(self, x: bytes) -> bytes:
        return x


class PickleSerializer(Serializer):
    """Any Python object. Whoever can write the rows can run code in every process that reads them."""

    takes_buffers = True

    def serialize(self, x: Any) -> bytes:
        return pickle.dumps(x)

    def deserialize(self, x: Buffer) -> Any:
        return pickle.loads(x)


_BY_NAME: dict[str, type[Serializer]] = {
    "json": JSONSerializer,
    "msgpack": MsgpackSerializer,
    "raw": NoSerializer,
    "pickle": PickleSerializer,
}


def serializer_named(name: str) -> Serializer:
    """For command lines: json, msgpack, raw or pickle. Raises ConfigError."""
    try:
        return _BY_NAME[name]()
    except KeyError:
        raise ConfigError(f"serialization {name!r}: known are {', '.join(_BY_NAME)}") from None


def _check(x: Any) -> None:
    """Raises TypeError for what orjson refuses and msgspec would write in a way of its own.

    Looks at the types of a container at once, because most of a row is text and numbers.
    """
    kind = type(x)
    if kind is dict or isinstance(x, dict):
        if not _STRINGS.issuperset(map(type, x)):
            _check_keys(x)
        x = x.values()
    elif not (kind is list or kind is tuple or isinstance(x, list)):
        return _check_scalar(x)
    kinds = set(map(type, x))
    if kinds <= _SAFE:
        return None
    if kinds == _INTS:
        return _check_range(min(x), max(x))
    for value in x:
        kind = type(value)
        if kind is int:
            if not _INT_MIN <= value <= _INT_MAX:
                _check_range(value, value)
        elif kind not in _SAFE:
            _check(value)
    return None


def _check_keys(x: dict[Any, Any]) -> None:
    for key in x:
        if not isinstance(key, str):
            raise TypeError(f"JSON: keys are str, got {key!r}")


def _check_scalar(x: Any) -> None:
    if isinstance(x, int):
        _check_range(x, x)
    elif not (isinstance(x, str) or type(x) is float or x is None):
        raise TypeError(
            f"JSON: Type is not JSON serializable: {type(x).__name__}; give a Serializer of your own"
        )


def _check_range(smallest: int, largest: int) -> None:
    if smallest < _INT_MIN or largest > _INT_MAX:
        got = smallest if smallest < _INT_MIN else largest
        raise TypeError(f"JSON: Integer exceeds 64-bit range: {got}")


def _plain(x: Any) -> Any:
    """Subclasses of what JSON knows, which msgspec asks about."""
    for kind in (str, int):
        if isinstance(x, kind):
            return kind(x)
    raise TypeError(f"JSON: Type is not JSON serializable: {type(x).__name__}")


def _leniently(x: Buffer, refused: ValueError) -> Any:
    """What the standard library reads and msgspec does not: NaN, a byte order mark, lone surrogates."""
    try:
        return json.loads(bytes(x))
    except ValueError:
        raise refused from None


__all__ = [
    "JSONSerializer",
    "MsgpackSerializer",
    "NoSerializer",
    "PickleSerializer",
    "Serializer",
    "serializer_named",
]
