"""Prints what this interpreter makes of the golden views. Run by test_placement.py in other processes.

Interpreters without mmh3 get the hash that is written out in `placement_reference`; all else is the
real module.
"""

from __future__ import annotations

import sys
import types

import placement_reference as reference

try:
    import mmh3  # noqa: F401
except ImportError:
    stand_in = types.ModuleType("mmh3")
    stand_in.hash64 = lambda key, seed: reference.murmur3_x64_128(key, seed)  # type: ignore[attr-defined]
    sys.modules["mmh3"] = stand_in

from kara_cache.placement import Placement, slot_of

keys = reference.keys()
slots = [slot_of(key) for key in keys]
for weights in reference.views():
    owners = [list(ranked) for ranked in Placement.build(weights, ranks=reference.RANKS).owners_of_slot]
    print(reference.digest(keys, slots, owners))
