"""What the numbers were measured on: kernel, CPU, versions, congestion control, cores."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_IN_NAMESPACE = "KARA_BENCH_NAMESPACE"
_CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_PACKAGES = ("kara-cache", "uvloop", "xxhash", "fsspec", "requests", "urllib3")

ALL_CORES = frozenset(os.sched_getaffinity(0))
SERVER_CORES = frozenset(sorted(ALL_CORES)[:1])
CLIENT_CORES = frozenset(sorted(ALL_CORES)[1:2]) or SERVER_CORES


def in_namespace() -> bool:
    return bool(os.environ.get(_IN_NAMESPACE))


def enter_namespace(arguments: Sequence[str], program: str = "benchmarks") -> None:
    """Starts this program again in a network namespace of its own where loopback uses reno.

    Returns where that is not possible or has been done. A new namespace is the only place where
    loopback's congestion control can be set without changing it for the machine.
    """
    if in_namespace() or os.geteuid() != 0 or not shutil.which("unshare"):
        return
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    if probe.returncode:
        return
    # Mooncake refuses a host whose only interface is loopback; nothing is sent through this one
    lan = "ip link add lan0 type veth peer name lan1 && ip address add 10.254.0.1/24 dev lan0"
    lan = f"{{ {lan} && ip link set lan1 up && ip link set lan0 up; }} 2>/dev/null || true"
    prepare = f'ip link set lo up && echo reno > {_CONGESTION} && {{ {lan}; }} && exec "$@"'
    os.environ[_IN_NAMESPACE] = "1"
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    sys.stdout.flush()
    command = ["unshare", "-n", "sh", "-c", prepare, "sh", sys.executable, "-m", program, *arguments]
    os.execvp("unshare", command)


def allow_many_files() -> None:
    """For a thousand connections, at both ends: what is started from here on inherits it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """What is started inside runs on these cores; this process is back where it was afterwards."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raise_priority(pid: int, nice: int) -> None:
    """Of a process and, where the kernel groups by session (sched(7), autogroup), of its session."""
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists():
        with contextlib.suppress(OSError):
            group.write_text(str(nice))


def facts() -> dict[str, str]:
    """Everything that a reader needs to judge the ratios; no name of the machine."""
    return {
        "processor": f"{_cpu_model()}, {len(ALL_CORES)} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name))),
        "nginx": _nginx_version(),
        "congestion control": _CONGESTION.read_text().strip(),
        "network": "loopback in a namespace of its own" if in_namespace() else "loopback",
        "cores": f"servers on {_names(SERVER_CORES)}, clients on {_names(CLIENT_CORES)}; cold reads unpinned",
    }


def _names(cores: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(cores)))


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _nginx_version() -> str:
    program = shutil.which("nginx")
    if program is None:
        return "not installed"
    return (
        subprocess.run([program, "-v"], capture_output=True, text=True, check=True)
        .stderr.strip()
        .rpartition("/")[2]
    )
