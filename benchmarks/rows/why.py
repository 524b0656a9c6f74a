"""Why a column falls short of what was to be reached, as far as it was measured; printed below the table."""

from __future__ import annotations

WHY: dict[str, str] = {
    "append": (
        "process time in a run apart: 3.1 us a row against 2.4 of the limit, about 1.6 of both in the "
        "kernel. Ours adds a checksum, a copy that joins a megabyte of rows, and two calls a row; "
        "writev in place of the copy gained 0.1 us or nothing. kara-storage takes no sums and never "
        "calls fsync."
    ),
    "shuffled": (
        "process time in a run apart: making the order first takes 0.2 us a row, gathering rows in it "
        "with their sums 1.1, all together with the thread that reads ahead 1.6. A pool over a pass "
        "in sequence, as the others have it, takes 1.1 with our rows too; ours is for stores, where "
        "batches are fetched."
    ),
    "loader_json": (
        "not explained. Two rounds, both below; the same reads without a loader (permutation, JSON) "
        "reach it, and so does the loader with shuffling."
    ),
}
CLUSTER = (
    "Where it is missed: process time of `read_spans` alone, batches of 256, in runs apart: 7 to "
    "8 us a row in the client on this host; over TCP 7 in the client and 12 to 17 in the workers, "
    "which here take it from the client's two cores. pread of a warm 16 KiB block, the unit of "
    "checksums, takes 2.7 us, of 4 KiB 1.4. How much of a loader's row is its pipe was not "
    "measured."
)
