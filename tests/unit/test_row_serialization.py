"""Serializers: what goes in comes out, and what cannot is refused by name."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from kara_cache import serialization
from kara_cache.errors import ConfigError
from kara_cache.serialization import (
    JSONSerializer,
    MsgpackSerializer,
    NoSerializer,
    PickleSerializer,
    Serializer,
    serializer_named,
)

SCALARS = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)


def without_nan(value: Any) -> Any:
    """As JSON keeps it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    return value


@given(VALUES)
def test_json_there_and_back(value: Any) -> None:
    written = JSONSerializer().serialize(value)
    for buffer in (written, bytearray(written), memoryview(written)):
        assert JSONSerializer().deserialize(buffer) == without_nan(value)
    assert json.loads(written) == without_nan(value)


@given(VALUES)
def test_json_is_compact_and_in_order(value: Any) -> None:
    written = JSONSerializer().serialize(value)
    same = json.dumps(without_nan(value), ensure_ascii=False, separators=(",", ":"))
    assert json.loads(written, object_pairs_hook=list) == json.loads(same, object_pairs_hook=list)
    assert len(written) <= len(same.encode()) + 8 * same.count("e")


BINARY: list[Any] = [b"x", bytearray(b"x"), memoryview(b"x"), "\ud800"]
CONTAINERS: list[Any] = [{1}, frozenset(), {1: 2}, {None: 1}, {b"a": 1}]
REFUSED: list[Any] = [*BINARY, *CONTAINERS, 1 << 64, -(1 << 63) - 1, object(), 1j, print]


@pytest.mark.parametrize("value", REFUSED, ids=repr)
def test_json_refuses_at_any_depth(value: Any) -> None:
    for wrapped in (value, [value], {"a": value}, ({"a": [1, "b", (value,)]}, 2), [1, 2, value]):
        with pytest.raises(TypeError, match="JSON"):
            JSONSerializer().serialize(wrapped)


@pytest.mark.parametrize(
    ("text", "value"), [("NaN", math.nan), ('"\\ud800"', "\ud800"), ("[-Infinity]", [-math.inf])]
)
def test_json_of_lenient_writers_is_read(text: str, value: Any) -> None:
    assert repr(JSONSerializer().deserialize(text.encode())) == repr(value)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[1,]", b"1 2"])
def test_what_is_no_json(text: bytes) -> None:
    with pytest.raises(ValueError):
        JSONSerializer().deserialize(text)


@given(
    st.recursive(
        SCALARS.filter(lambda x: x == x) | st.binary(), lambda x: st.lists(x, max_size=4), max_leaves=20
    )
)
def test_msgpack_there_and_back(value: Any) -> None:
    written = MsgpackSerializer().serialize(value)
    assert MsgpackSerializer().deserialize(memoryview(written)) == value


def test_pickle_there_and_back() -> None:
    value = ({1, 2}, (3,), print)
    assert PickleSerializer().deserialize(PickleSerializer().serialize(value)) == value


def test_a_base_says_what_is_missing() -> None:
    class Half(Serializer):
        pass

    for use in (lambda: Half().serialize(1), lambda: Half().deserialize(b"")):
        with pytest.raises(NotImplementedError, match="Half does not define"):
            use()


@pytest.mark.parametrize("name", ["json", "msgpack", "raw", "pickle"])
def test_serializers_travel(name: str) -> None:
    copy = pickle.loads(pickle.dumps(serializer_named(name)))
    assert copy.deserialize(copy.serialize(b"x" if name == "raw" else [1])) == (
        b"x" if name == "raw" else [1]
    )


def test_names() -> None:
    assert type(serializer_named("raw")) is NoSerializer
    with pytest.raises(ConfigError, match="known are json, msgpack, raw, pickle"):
        serializer_named("yaml")
    for name in ("JSONSerializer", "PickleSerializer", "NoSerializer", "Serializer"):
        assert hasattr(serialization, name)
