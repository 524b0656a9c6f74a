"""Why a row misses its target, from profiles. Shown beside a row only when it does."""

from __future__ import annotations

_SMALL_HITS = (
    "perf on the worker: of 28 us a request, 13 are in sendmsg, half of them spent waking the loader, "
    "which sleeps because it is faster than the worker; 10 are the interpreter (in process: try_fast "
    "6.4 us, of which finding the page and touching the policy 1.5, reading and verifying it 1.5), 3 "
    "are recv and pread. nginx needs 14 in all. There are three system calls left, so what remains is "
    "interpreter time."
)
_NEAR = (
    "reading direct moves each byte once, from the kernel's memory; through the cache the same two "
    "cores receive it, take two sums, write it to disk and send it again. It says what a fill costs, "
    "not what a store at the other end of a network would see: those are the rows of the distant store."
)

WHY: dict[str, str] = {
    "worker_4KiB": _SMALL_HITS,
    "worker_100KiB": (
        "the same 10 us of interpreter and the same wake-ups as at 4 KiB, beside a sendfile of 8 us; "
        "the two probes for residence that were here are down to four a second and page."
    ),
    "worker_1MiB": (
        "sendfile of 1 MiB takes 60-70 us on both sides; the interpreter's 10 us beside it are what is "
        "missing, within the spread of the rounds."
    ),
    "client_bare_1 MiB": (
        "the sum of 1 MiB (17 us), and the interpreter's part, which is the same as at 4 KiB, on about "
        "200 us."
    ),
    "batch_throughput": (
        "the worker needs 9.5 us a sample in process: 10 KiB lie in two or three blocks of 16 KiB, "
        "which are read (2 us), verified (1.5) and copied, besides 1.5 us to find the page; sending and "
        "receiving add as much. 15x would be 5 us a sample on both sides."
    ),
    "fsspec_open": (
        "not one hot spot: building and closing fsspec's file object, our reader behind it, its lock "
        "and its window, and fsspec's own checks of the path; the request for the file's facts is in "
        "both."
    ),
    "host_repeat": (
        "pread of the 16 KiB block around the 4 KiB takes 1.6 us and its sum 0.4, counting 0.5; the "
        "rest is the interpreter's. A repeat is as fast as open + pread + close, which verifies "
        "nothing."
    ),
    "host_first": (
        "descriptors are asked for by a request that takes the general way: query parser, a task, JSON "
        "and SCM_RIGHTS on the worker (py-spy: no part above 7 %), quoting of the path (25 us) and a "
        "header to check on the client. Reads of bytes have a way of their own that skips all of it. A "
        "reader in sequence gets 64 descriptors for one such request."
    ),
    "cold_near_file": _NEAR,
    "cold_near_pieces": _NEAR,
    "cold_near_small": _NEAR,
    "cold_far_small": (
        "one after another, each object pays the added time to the first byte (row below) on top of 22 "
        "ms: a request to the worker, a thread that asks the store, and the way back through the event "
        "loop."
    ),
    "cold_far_first": (
        "the hand-overs between event loop and store thread, which cost more the busier the machine is: "
        "under 1 ms beside the fast store in the same run."
    ),
}

_IN_MEMORY = (
    "values lie in the memory of a process in C or C++ and are sent as they are; ours come from a page on "
    "SSD, under a sum that worker and client take, both in Python. What it is behind by is the interpreter's "
    "time at small sizes (see the CPU times)."
)
_LOCAL_FILE = (
    "a file of this host's disk, read as it is: one system call or one copy, and nothing is verified. Ours "
    "finds the page, reads the blocks around what is asked for and compares their sums. It is a copy for "
    "this host and this directory alone: see two-jobs for what that costs the store."
)

WHY |= {
    "peer_memcached": _IN_MEMORY,
    "peer_redis": _IN_MEMORY,
    "peer_mooncake": _IN_MEMORY,
    "peer_juicefs": (
        "JuiceFS is not asked: the kernel holds the file's pages in memory and answers preadv itself, "
        "unverified. A read that the kernel has not, goes through FUSE."
    ),
    "peer_ray": (
        "get() makes a view of shared memory: nothing is copied and nothing verified, whatever the size. "
        "Ours copies into the caller's memory and compares sums."
    ),
    "peer_blockcache_whole file": (
        "after the first read of all of it, fsspec's file over HTTP keeps the whole object in the memory of "
        "the process and returns the same bytes again, without a copy."
    ),
    "peer_blockcache": _LOCAL_FILE,
    "peer_filecache": _LOCAL_FILE,
    "peer_simplecache": _LOCAL_FILE,
    "server_nginx_slice": (
        "the bytes take the same way, from a file by sendfile; what differs is the work for a request, which "
        "is the interpreter's in ours (CPU us/req below)."
    ),
    "server_varnish": (
        "objects in memory, sent from it by threads, one of which each connection has for itself; ours reads "
        "and verifies, or hands the page to sendfile, in one thread for all."
    ),
}


def why(key: str) -> str:
    """Of a row; of a peer's or a server's where it says more than its length or its connections."""
    while key:
        if key in WHY:
            return WHY[key]
        key = key.rpartition("_")[0]
    return "not explained yet"
