"""What keys and values may be."""

from __future__ import annotations

MAX_KEY_BYTES = 511
"""LMDB's limit (MDB_MAXKEYSIZE of every build that is distributed)."""

Key = bytes | str
Value = bytes | bytearray | memoryview


def key_bytes(key: Key) -> bytes:
    """Text as UTF-8. Raises ValueError for a key that LMDB cannot hold, with its length and the limit."""
    found = (
        key.encode()
        if isinstance(key, str)
        else bytes(key)
        if isinstance(key, (bytearray, memoryview))
        else key
    )
    if not isinstance(found, bytes):
        raise TypeError(f"a key is bytes or str, got {type(key).__name__}")
    if not 0 < len(found) <= MAX_KEY_BYTES:
        raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes, got {len(found)}: {found[:40]!r}")
    return found


def value_bytes(value: Value) -> Value:
    """Raises TypeError for what has no bytes: text has to be encoded by whoever decodes it."""
    if isinstance(value, (bytes, bytearray)):
        return value
    if isinstance(value, str):
        raise TypeError("a value is bytes, got str: encode it, get() returns bytes")
    try:
        return memoryview(value).cast("B")
    except TypeError as exc:
        raise TypeError(f"a value is bytes or a contiguous buffer, got {type(value).__name__}") from exc
