"""Why a row misses its target, from profiles. Shown beside a row only when it does."""

from __future__ import annotations

from benchmarks.rows.why import CLUSTER
from benchmarks.rows.why import WHY as ROWS

_SMALL_HITS = (
    "two system calls and the lines of Python between them, against nginx's own two and its C: "
    "docs/performance/microseconds.md has every line. Which is ahead changes with how many answers leave "
    "together, and so with how fast the loader is on this machine."
)
_NEAR = (
    "reading direct moves each byte once, from the kernel's memory: 0.3 ms of processor time for a MiB in "
    "the client. Through the cache a MiB takes the worker 1.9 ms on the same two cores: 0.7 to write its "
    "page to a file, 0.5 to receive and sum it, 0.35 in the kernel to send it, and the rest is the "
    "interpreter's and changes between threads. It says what a fill costs, not what a store at the other "
    "end of a network would see: those are the rows of the distant store."
)
_NEAR_SMALL = (
    "an object of 64 KiB takes the worker 1.5 ms of processor time where reading direct takes the client "
    "0.13: 0.96 to make its page's file, since ext4 passes over inodes that were freed lately, and each "
    "round frees all of them (0.2 in segments); 0.34 in the event loop and 0.24 in the thread that asks the"
    " store."
)

WHY: dict[str, str] = {
    "worker_4KiB": _SMALL_HITS,
    "worker_100KiB": _SMALL_HITS,
    "worker_1MiB": (
        "sendfile is nearly all of it on both sides. The worker makes three system calls for a page (recv, "
        "send, sendfile; both have their share of epoll_wait) and nginx five (recv, writev, sendfile, and "
        "TCP_CORK twice); nginx is as fast over the worker's page files as over its own. The lines of "
        "Python between the calls are what is missing, 6 to 9 us of 100, within the spread of rounds."
    ),
    "worker_4MiB": (
        "sendfile is nearly all of it on both sides; the interpreter's part beside it is what is missing, "
        "within the spread of the rounds."
    ),
    "client_bare_1 MiB": (
        "the sum of 1 MiB (17 us), and the interpreter's part, which is the same as at 4 KiB, on about "
        "200 us."
    ),
    "batch_throughput": (
        "the ratio counts single reads too, and what makes those faster lowers it. What a sample of 10 KiB "
        "costs the worker is the floor: pread of the three or four blocks around it 1.4 us, their sums 0.4, "
        "one copy 0.4, the interpreter's 2.2 to find and place it, and 4 in the kernel to send it: bytes "
        "that were verified are copied into the socket, where sendfile, which copies nothing, cannot "
        "verify. The client's 2 in the kernel and 3.5 outside pass beside it on another core, but for what "
        "comes before the first request."
    ),
    "fsspec_open": ("not one hot spot: fsspec's file object and its checks of the path, and ours behind it."),
    "host_repeat": (
        "pread of the blocks around the 4 KiB, their sums and the counting; the rest is the interpreter's. "
        "The row of open + pread + close, which verifies nothing, is beside it."
    ),
    "host_view": (
        "no system call and no copy: all of it is the interpreter's, to find the mapped page, cut the view "
        "and count the read."
    ),
    "host_first": (
        "the descriptor comes along with the bytes. That costs some 14 us of processor time on each side, of "
        "which the kernel's are 3 for both (a bare socket pair with and without); the rest is ours, to send, "
        "take and keep it. The second touch is 20 us and no request; pages that nobody touches twice are "
        "not passed any more after the first 64."
    ),
    "cold_near_file": _NEAR,
    "cold_near_pieces": _NEAR,
    "cold_near_small": _NEAR_SMALL,
    "cold_far_small": (
        "one after another, each object pays the added time to the first byte (row below) on top of 21 to "
        "22 ms."
    ),
    "cold_far_first": (
        "0.5 ms pass in four hand-overs that a direct read has not, each to a thread that sleeps: client to"
        " event loop 0.15 ms, to the store's thread 0.11, back 0.11, to the client 0.16, where nobody else "
        "uses the processors; 0.4 is what the interpreter does between them, after 20 ms in which the "
        "processor's caches were given to others. The busier the machine, the longer each of them takes."
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


_CHURN = (
    "the floor is the kernel's copy into memory that it has already (kernel, CPU us below: a bare pwrite "
    "into the oldest segment); a page through the store adds 20 us, of which 3 are the write of the journal "
    "and the rest the interpreter's: books, policy, header and its sum. The target is from a file system "
    "that took 591 us for unlink + create of 1 MiB and 333 for 64 KiB; here it changes threefold with how "
    "many inodes were freed lately, and is told below."
)
_MEMORY = (
    "the index of a million pages is 160 MB and no processor's cache holds it: looking up one of them waits "
    "for memory at its key, its entry, its file's name and its page, where the smaller population has them "
    "at hand."
)
_TWO_CORES = (
    "store, workers, the processes that fetch and the reader share two cores: a reader that finds both taken "
    "waits for its turn at one, whoever has it. "
)

WHY |= {
    "churn_1048576": _CHURN,
    "churn_65536": _CHURN,
    "churn_restart": (
        "each page becomes an entry of a dictionary again, and one of the policy's, from the journal: the "
        "target leaves the interpreter 1.5 us a page for both."
    ),
    "churn_growth": _MEMORY,
    "growth_pages_time": _MEMORY,
    "large_near": (
        "one connection to a worker beside us is as fast as memory is copied, so that others cannot bring "
        "more; trying whether they do costs a part of the file."
    ),
    "foreground_p99": (
        _TWO_CORES + "Of the time of slow reads (perf sched, with other programs beside) 83 % are that wait, "
        "4 % one for the interpreter, none one for a disk. What the worker spends on a MiB is told below."
    ),
    "prewarm_p99": (
        _TWO_CORES + "The rows of the same bytes read past the cache, and of other workers that load as "
        "fast, say what is not this worker's. A profile: docs/load-jobs.md."
    ),
    "prewarm_big": "listing, the first bytes and the receipt are in it, of a load of a few seconds.",
    "disk_pages": (
        "the same disk and the same megabytes, and the same calls of the kernel: a thread reads a page and "
        "sends it with one sendfile. Beside them a page takes the worker some 80 us outside the kernel, in "
        "Python and in handing the interpreter over, on the one core that either server has."
    ),
    "disk_p99": (
        "both share one core with the disk's interrupts; nginx's own ratio in the same rounds is told below."
    ),
    "client_session": (
        "at 1 MiB most of either side is the kernel's copy into the reader's memory, which both pay."
    ),
    "memory": (
        "the client's connections and buffers, and those pages of the parent that a forked child writes to "
        "because it counts references to what is in them: the client's modules are among them."
    ),
    "rows_sequential": (
        "every row's checksum is compared, 0.1 us of 0.8; LMDB copies bytes out of its map and compares "
        "nothing."
    ),
    **{f"rows_{column.replace('_', '-')}": text for column, text in ROWS.items()},
    "rows_loader-shuffled": CLUSTER,
    "rows_loader-shuffled-json": CLUSTER,
}


WHY["growth_workers_balance"] = (
    "the table of slots may give one worker 2 % more than its share, and does; a million names add chance: "
    "0.4 % for the fullest of eight."
)


def why(key: str) -> str:
    """Of a row; of a peer's or a server's where it says more than its length or its connections."""
    while key:
        if key in WHY:
            return WHY[key]
        key = key.rpartition("_")[0]
    return "not explained yet"
