"""Why a column falls short of what was to be reached, as far as it was measured; printed below the table."""

from __future__ import annotations

WHY: dict[str, str] = {
    "append": (
        "process time in runs apart: 2.9 us a row, 2.3 of the limit, 3.2 of kara-storage; 0.6 of each makes "
        "the row, 1.3 are the kernel's. The 0.6 between ours and the limit are the checksum (0.2), a call, "
        "a lock, and rows that are kept until a megabyte goes to the kernel without a copy; with 64 KiB to "
        "2 MiB it is the same, and a thread for the kernel's part cost 0.3. kara-storage takes no sums and "
        "never calls fsync; 1.5 times as fast as it would be 2.1, less than the limit."
    ),
    "shuffled": (
        "process time in runs apart: 1.1 to 1.3 us a row; 0.7 are slices of a mapping in an order in "
        "which the processor fetches nothing in advance, 0.2 checksums, 0.1 the order. The limit takes 0.9 "
        "to 1.1: it reads in sequence and holds rows in the pool. The same with our rows takes 1.3."
    ),
    "loader_json": (
        "others on the machine: process time of the loader with its workers, in the same rounds, is 25.6 us "
        "a row against 28.1 of the limit."
    ),
}
CLUSTER = (
    "Where it is missed: process time of a raw row in a batch of 256, in runs apart: on this host 2.4 us "
    "against 1.1 of the mapped file (5.8 before rows were told by their own sums alone). 1.2 of it is "
    "`pread` of 3 KB, for which a slice of a mapping takes 0.6; pages are not mapped, since a disk that "
    "fails would end the process (SIGBUS) in place of a read. A loader's row takes 5.7 us with the pipe, "
    "in all processes, 7.0 through the cache. Over TCP a row takes 7 in the client and 12 to 17 in the "
    "workers, which here take it from the client's two cores."
)
