"""The sidecar of keys: lookups, order, damage."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import FormatError
from kara_cache.storage.rows import row_keys
from kara_cache.storage.rows.row_keys import BUCKET_BYTES, HEADER_BYTES, RowKeys, write_row_keys
from kara_cache.ufs.base import Progress
from kara_cache.ufs.memory import MemoryStore

PATH = "row/n/k/1/keys/rows.keys"
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)


def stored(keys: list[str]) -> MemoryStore:
    store = MemoryStore()
    assert write_row_keys(store, PATH, keys) == len(keys)
    return store


def opened(store: MemoryStore) -> RowKeys:
    found = RowKeys.open(store, PATH)
    assert found is not None
    return found


def test_layout() -> None:
    assert HEADER_BYTES == 48
    assert (
        row_keys._BUCKET_HEAD.size + 170 * row_keys._ENTRY.size + row_keys._SUM.size == BUCKET_BYTES == 4096
    )


@given(st.lists(TEXT, unique=True))
def test_every_key_leads_to_its_row_and_no_other_does(keys: list[str]) -> None:
    found = opened(stored(keys))
    assert len(found) == len(keys)
    assert list(found.keys()) == keys
    assert found.find_many(keys) == list(range(len(keys)))
    assert [found.find(f"{key}!") for key in keys] == [
        keys.index(f"{key}!") if f"{key}!" in keys else None for key in keys
    ]
    found.verify()


def test_many_keys_of_every_length() -> None:
    rng = random.Random(5)
    keys = [f"{i}-{'x' * rng.randrange(400)}" for i in range(5000)]
    found = opened(stored(keys))
    assert list(found.keys()) == keys
    rng.shuffle(wanted := [*enumerate(keys)])
    assert all(found.find(key) == row for row, key in wanted)
    assert "absent" not in found


def test_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    checksum = row_keys.checksum

    def poor(data: bytes) -> int:
        return len(data) << 60 if len(data) < 16 else checksum(data)

    monkeypatch.setattr(row_keys, "checksum", poor)
    keys = [f"key{i:02}" for i in range(100)]
    assert opened(stored(keys)).find_many(keys) == list(range(100))


def test_overfull_buckets_make_more_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_keys, "_MEAN_ENTRIES", 10_000)
    keys = [str(i) for i in range(3000)]
    found = opened(stored(keys))
    assert found._buckets > 3000 // 170
    assert found.find_many(keys) == list(range(3000))


@pytest.mark.parametrize(
    ("keys", "said"),
    [(["a", "b", "a"], "'a' comes twice.*row 2"), ([""], "got 0"), (["x" * 65536], "got 65536")],
)
def test_keys_that_are_refused_leave_nothing(keys: list[str], said: str) -> None:
    store = MemoryStore()
    with pytest.raises(ValueError, match=said):
        write_row_keys(store, PATH, keys)
    assert RowKeys.open(store, PATH) is None


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "something else": lambda data: b"x" * len(data),
    "header": lambda data: data[:20] + b"\xff" + data[21:],
    "newer version": lambda data: _with_version(data, 2),
    "cut": lambda data: data[:-1],
    "bucket": lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
    "keys": lambda data: data[:-20] + b"!" + data[-19:],
}


def _with_version(data: bytes, version: int) -> bytes:
    head = row_keys._HEADER.pack(b"KARAKEYS", version, *row_keys._HEADER.unpack_from(data)[2:])
    return head + row_keys._SUM.pack(row_keys.checksum(head)) + data[HEADER_BYTES:]


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str) -> None:
    store = stored([str(i) for i in range(300)])
    buffer = bytearray(store.info(PATH).size)
    store.read_into(PATH, 0, memoryview(buffer))
    store.write(PATH, DAMAGE[name](bytes(buffer)))
    with pytest.raises(FormatError, match=PATH):
        opened(store).verify()


def test_a_lookup_reads_little() -> None:
    class Counting(MemoryStore):
        read = 0

        def read_into(
            self,
            path: str,
            start: int,
            buffer: memoryview,
            *,
            version: str | None = None,
            progress: Progress | None = None,
        ) -> int:
            self.read += len(buffer)
            return super().read_into(path, start, buffer, version=version, progress=progress)

    store = Counting()
    write_row_keys(store, PATH, (f"key {i}" for i in range(20_000)))
    found = opened(store)
    assert found.find("key 777") == 777
    assert store.read <= HEADER_BYTES + BUCKET_BYTES + 20
