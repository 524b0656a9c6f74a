"""Which workers own a key: the same answer in every process that sees the same members and weights.

This is a wire contract (version 1): clients, workers and any other implementation must compute the
same table. `tests/unit/placement_reference.py` is a second implementation written from this text, and
`tests/unit/placement_vectors.json` holds vectors that both reproduce.

Input: worker ids (text) with weights (integers; capacity in bytes, say). If any weight is not
positive, it is unknown, and then all weights are 1. Workers are ordered by id, by code points.

1. **Slot of a key.** MurmurHash3_x64_128 of the key with seed 0x6b617261 ("kara"); the first 64-bit word,
   modulo SLOTS = 16384.
2. **Cost of a worker for a slot.** Take SHAKE-128 of `b"kara-placement-v1:" + id in UTF-8`, 4 * SLOTS
   bytes of output. x is the little-endian unsigned 32-bit integer at bytes [4 slot, 4 slot + 4), u =
   (x + 0.5) / 2**32, and the cost is -ln(u) / weight, all in IEEE doubles. The smallest of such
   exponential variates falls to a worker with probability proportional to its weight: weighted
   rendezvous hashing (Thaler and Ravishankar 1998; weights as in Schindelhauer and Schomaker 2005).
3. **Ranking of a slot.** Workers by cost, cheapest first; equal costs in worker order.
4. **Bounded load.** A worker's limit is ceil(SLOTS * weight * 102 / (100 * sum of weights)) slots. Slots
   in ascending order go to the first worker of their ranking that is below its limit. (The idea of
   Mirrokni, Thorup and Zadimoghaddam 2018, on slots, so that no view of the load is needed.)
5. **Owners of a slot.** That worker, then the others in the order of the ranking, at most `ranks` in all.

Logarithms of two libraries may differ in the last bit. With equal weights that cannot change an order,
since x has only 32 bits; with unequal ones it takes two costs within 2**-52 of each other, and then the
price is a cache miss, not wrong bytes.

Numbers. MurmurHash3 x64_128 because it is the fastest of the family on keys of path length and present
in every language. SHAKE-128 because one call yields a worker's whole column (0.3 ms), exactly specified
(FIPS 202). 2 % of slack and 16384 slots were chosen together by measurement. With 120 random sets of
16 workers, a 17th moves 1.03/17 of the slots on average and 1.09/17 at worst. With 4096 slots chance
weighs twice as much, the limits have more to correct, and every second such join moves more than 1.1/17.
At 32 and 64 workers a join moves 1.09 and 1.21 of its ideal part: there the price of evenness shows.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import shake_128
from math import log

import mmh3

SLOTS = 1 << 14
_SEED = 0x6B617261
_DOMAIN = b"kara-placement-v1:"
_SLACK_PERCENT = 102


def slot_of(key: bytes) -> int:
    """The slot of a key (`stripe.stripe_key`), 0 .. SLOTS - 1. Never Python's own hash: it is salted."""
    return mmh3.hash64(key, _SEED)[0] % SLOTS


@dataclass(frozen=True, slots=True, repr=False)
class Placement:
    """The owners of every key for one set of members; immutable, so another membership is another object.

    At most 1.02 of its fair share of the slots, rounded up, falls to any worker. When one of n + 1 workers
    comes or goes, its own slots move and, because the limits shift, a few more: less than 0.1 / (n + 1) of
    all up to 16 workers, 0.15 / (n + 1) at 32, 0.3 / (n + 1) at 64.
    """

    workers: tuple[str, ...]  # sorted
    owners_of_slot: tuple[tuple[str, ...], ...]  # SLOTS entries, ranked, distinct

    @classmethod
    def build(cls, weights: Mapping[str, int], *, ranks: int = 3) -> Placement:
        """The table for these workers; a tenth of a second for 16 workers, see the module's text.

        Args:
            weights: worker id to its share in any unit; one that is not positive makes all equal.
            ranks: owners kept for each slot: the first, its replicas and those to fail over to.
        """
        if ranks < 1:
            raise ValueError(f"ranks must be at least 1, got {ranks}")
        workers = tuple(sorted(weights))
        if not workers:
            return cls((), ((),) * SLOTS)
        shares = [weights[worker] for worker in workers]
        if min(shares) <= 0:
            shares = [1] * len(workers)
        return cls(workers, tuple(_owners(workers, shares, ranks)))

    def owners(self, key: bytes, count: int) -> tuple[str, ...]:
        """The first `count` owners of the key, best first, distinct; fewer where there are fewer.

        There are never more than the `ranks` that the table was built with.
        """
        return self.owners_of_slot[mmh3.hash64(key, _SEED)[0] % SLOTS][:count]

    def __repr__(self) -> str:
        return f"<Placement {len(self.workers)} workers, {len(self.owners_of_slot[0])} ranks, {SLOTS} slots>"


def _owners(workers: Sequence[str], weights: Sequence[int], ranks: int) -> Iterator[tuple[str, ...]]:
    total = sum(weights)
    room = [-(-SLOTS * weight * _SLACK_PERCENT // (100 * total)) for weight in weights]
    everyone = range(len(workers))
    columns = [_costs(worker, weight) for worker, weight in zip(workers, weights, strict=True)]
    for costs in zip(*columns, strict=True):
        ranking = sorted(everyone, key=costs.__getitem__)
        first = ranking[0]
        if not room[first]:
            # The limits add up to more than SLOTS, so somebody has room.
            first = next(worker for worker in ranking if room[worker])
            ranking.remove(first)
            ranking.insert(0, first)
        room[first] -= 1
        yield tuple([workers[worker] for worker in ranking[:ranks]])


def _costs(worker: str, weight: int) -> list[float]:
    draws = array("I", shake_128(_DOMAIN + worker.encode()).digest(4 * SLOTS))
    if sys.byteorder == "big":
        draws.byteswap()
    return [-log((x + 0.5) * 2.0**-32) / weight for x in draws]
