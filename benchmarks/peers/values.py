"""What stores of keys and values have in common: each place of the file is a value."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any


def key_of(length: int, start: int) -> str:
    return f"{length}:{start}"


def put_all(
    file: str, length: int, places: Iterable[int], get: Callable[[str], Any], put: Callable[[str, bytes], Any]
) -> None:
    """Puts what the file has there; length 0 is all of it."""
    with open(file, "rb") as opened:
        for start in places:
            opened.seek(start)
            get(key_of(length, start))  # a miss, so that the counter is seen to move
            put(key_of(length, start), opened.read(length or -1))


def counter(port: int, question: bytes, name: bytes, end: bytes) -> float:
    """The number after `name` in what the server answers, which ends in `end`."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(question)
        text = b""
        while name not in text or not text.endswith(end):
            piece = sock.recv(1 << 16)
            if not piece:
                raise ConnectionError(f"port {port} closed after {text[-200:]!r}")
            text += piece
    return float(text.partition(name)[2].split()[0])
