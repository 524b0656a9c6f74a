"""A second implementation of the placement contract, written from the text of `kara_cache.placement`.

It shares no code with it and needs only the standard library: MurmurHash3 is written out, logarithms
are of another base, slots are handled one at a time. Slow and plain on purpose.

    python tests/unit/placement_reference.py > tests/unit/placement_vectors.json

writes the golden vectors anew. That is a break of the wire contract, so it needs a new version in
the text and a story for clusters in the middle of an upgrade.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from hashlib import sha256, shake_128

SLOTS = 16384
KEYS = 10_000
EXPLICIT_KEYS = 200
RANKS = 3
M64 = 2**64 - 1


def murmur3_x64_128(data: bytes, seed: int) -> tuple[int, int]:
    """After Austin Appleby's MurmurHash3_x64_128, public domain."""
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
    h1 = h2 = seed

    def rotated(x: int, bits: int) -> int:
        return ((x << bits) | (x >> (64 - bits))) & M64

    def mixed(k: int) -> int:
        k = ((k ^ (k >> 33)) * 0xFF51AFD7ED558CCD) & M64
        k = ((k ^ (k >> 33)) * 0xC4CEB9FE1A85EC53) & M64
        return k ^ (k >> 33)

    whole = len(data) // 16 * 16
    for k1, k2 in struct.iter_unpack("<QQ", data[:whole]):
        h1 ^= rotated(k1 * c1 & M64, 31) * c2 & M64
        h1 = ((rotated(h1, 27) + h2) * 5 + 0x52DCE729) & M64
        h2 ^= rotated(k2 * c2 & M64, 33) * c1 & M64
        h2 = ((rotated(h2, 31) + h1) * 5 + 0x38495AB5) & M64
    tail = data[whole:]
    if len(tail) > 8:
        h2 ^= rotated(int.from_bytes(tail[8:], "little") * c2 & M64, 33) * c1 & M64
    if tail:
        h1 ^= rotated(int.from_bytes(tail[:8], "little") * c1 & M64, 31) * c2 & M64
    h1 ^= len(data)
    h2 ^= len(data)
    h1 = (h1 + h2) & M64
    h2 = (h2 + h1) & M64
    h1, h2 = mixed(h1), mixed(h2)
    h1 = (h1 + h2) & M64
    return h1, (h2 + h1) & M64


def slot_of(key: bytes) -> int:
    return murmur3_x64_128(key, int.from_bytes(b"kara", "big"))[0] % SLOTS


def table(weights: dict[str, int], ranks: int) -> list[list[str]]:
    """The owners of every slot."""
    if any(weight <= 0 for weight in weights.values()):
        weights = dict.fromkeys(weights, 1)
    draws = {
        worker: shake_128(b"kara-placement-v1:" + worker.encode()).digest(4 * SLOTS) for worker in weights
    }
    total = sum(weights.values())
    limit = {worker: math.ceil(SLOTS * weight * 102 / (100 * total)) for worker, weight in weights.items()}
    held = dict.fromkeys(weights, 0)
    owners = []
    for slot in range(SLOTS):
        costs = []
        for worker, weight in weights.items():
            x = int.from_bytes(draws[worker][4 * slot : 4 * slot + 4], "little")
            costs.append((-math.log2((x + 0.5) / 2**32) / weight, worker))
        ranking = [worker for _, worker in sorted(costs)]
        first = next(worker for worker in ranking if held[worker] < limit[worker])
        held[first] += 1
        owners.append([first, *(worker for worker in ranking if worker != first)][:ranks])
    return owners


def keys() -> list[bytes]:
    """Keys as a cluster sees them: short and long paths, other alphabets, spaces, several stripes."""
    made = []
    for i in range(KEYS):
        scrambled = i * 2654435761 % 2**32
        ending = ("", ".jpg", "/part 00.parquet", "/数据-ü+%20#.tar")[i // 7 % 4]
        path = f"/m{i % 3}/{'d' * (scrambled % 41)}{scrambled:x}{ending}"
        made.append(path.encode() + b"\0" + str(scrambled % 11 % (1 + i % 5)).encode())
    return made


def views() -> list[dict[str, int]]:
    """One worker, a few, many; equal, weighted, extreme and unknown weights; ids of both kinds."""

    def uuid(i: int) -> str:
        return f"{(i + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"

    gib = 2**30
    return [
        {uuid(0): 100 * gib},
        {uuid(i): 100 * gib for i in range(2)},
        {f"10.0.0.{i}:28080": 0 for i in range(3)},
        {uuid(i): (i + 1) * 100 * gib for i in range(4)},
        {uuid(i): 100 * gib for i in range(8)},
        {uuid(i): (1, 2, 4, 7)[i % 4] * 125 * gib for i in range(16)},
        {f"[fd00::{i:x}]:28080": 0 if i == 3 else gib for i in range(17)},
        {uuid(i): 1 if i == 5 else 2**45 + i for i in range(40)},
    ]


def digest(all_keys: list[bytes], slots: list[int], owners: list[list[str]]) -> str:
    lines = (
        f"{key.hex()} {slot} {' '.join(owners[slot])}\n" for key, slot in zip(all_keys, slots, strict=True)
    )
    return sha256("".join(lines).encode()).hexdigest()


def vectors() -> dict[str, object]:
    all_keys = keys()
    slots = [slot_of(key) for key in all_keys]
    documents = []
    for weights in views():
        owners, order = table(weights, RANKS), sorted(weights)
        documents.append(
            {
                "weights": weights,
                "owners": [
                    [order.index(worker) for worker in owners[slot]] for slot in slots[:EXPLICIT_KEYS]
                ],
                "digest": digest(all_keys, slots, owners),
            }
        )
    return {
        "about": "Kara placement, version 1. keys: hex of the key, slot. owners: for each of these keys, as "
        "indices into the sorted worker ids. digest: sha256 over all keys of placement_reference.keys(), "
        "one line each: hex of the key, slot, owners, separated by spaces.",
        "keys": [[key.hex(), slot] for key, slot in zip(all_keys[:EXPLICIT_KEYS], slots, strict=False)],
        "views": documents,
    }


if __name__ == "__main__":
    json.dump(vectors(), sys.stdout, separators=(",", ":"))
    print()
