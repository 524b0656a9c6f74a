"""What is measured of each format, in which unit, and what ours must reach."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.rows.peers import LIMIT, LMDB, OURS, PREDECESSOR

BEST = "decoder"  # stands for the limit with JSON decoded: within 10 % of it


@dataclass(frozen=True)
class Column:
    """A method of `formats/measure.py`; `reach` are the ratios wanted of us, by peer."""

    key: str
    title: str
    method: str
    decode: bool
    timeout_s: float = 900.0
    reach: dict[str, float] = field(default_factory=dict)
    once: bool = False  # in a round: processes are started for it, which takes longer than the measurement

    def counts(self, name: str, number: int) -> bool:
        """Whether it is measured of a format in this round: after the first where a ratio is wanted."""
        return number == 0 or name == OURS or name in self.reach


def _raw(key: str, title: str, predecessor: float) -> Column:
    reach = {LMDB: 1.0, LIMIT: 0.7, PREDECESSOR: predecessor}
    return Column(key, title, key, False, reach=reach, once=key.startswith("loader"))


def _json(key: str, title: str) -> Column:
    return Column(
        f"{key}_json", f"{title}, JSON", key, True, reach={LIMIT: 0.9}, once=key.startswith("loader")
    )


APPEND = _raw("append", "append", 1.5)
READS = (
    _raw("sequential", "sequential", 2.0),
    _raw("random", "random (20k)", 8.0),
    _raw("permutation", "permutation", 8.0),
    _raw("shuffled", "shuffled", 2.0),
    _raw("loader", "DataLoader, 2 workers", 10.0),
    _raw("loader_shuffled", "DataLoader shuffled", 10.0),
    _json("sequential", "sequential"),
    _json("random", "random"),
    _json("permutation", "permutation"),
    _json("shuffled", "shuffled"),
    _json("loader", "DataLoader"),
    _json("loader_shuffled", "DataLoader shuffled"),
)
COLUMNS = (APPEND, *READS)
