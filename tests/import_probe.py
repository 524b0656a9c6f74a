"""Run as a program: imports the modules named on the command line and prints as JSON what that did.

    {module: {"error": text or null, "loaded": [top-level packages], "effects": [text]}}

`loaded` is found in a forked child for each module. For `effects` everything is imported twice in one
process. The first time the libraries run what they run at import; then what that left behind in the process
is put back. The second time only our own code runs, and an audit hook (PEP 578) records what it touches.
"""

from __future__ import annotations

import atexit
import importlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

OURS = ("kara_cache", "kara_worker")
# Base dependencies that every child needs: loaded once before the forks, they are not what is looked for.
PRELOADED = ("asyncio", "fsspec", "mmh3", "msgspec", "requests", "urllib3", "xxhash")
SLOW = {"kara_cache.torch": "torch"}  # takes seconds to load: once, in a child from which others are forked
TOUCHING = (
    "os.chmod",
    "os.exec",
    "os.fork",
    "os.link",
    "os.mkdir",
    "os.posix_spawn",
    "os.putenv",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.system",
    "os.truncate",
    "os.unsetenv",
    "shutil.",
    "socket.",
    "subprocess.",
    "tempfile.",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def import_error(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except BaseException as error:  # SystemExit and what else a module may raise
        return "".join(traceback.format_exception_only(type(error), error)).strip()
    return None


def imported(name: str) -> dict[str, Any]:
    error = import_error(name)
    loaded = sorted({module.partition(".")[0] for module in sys.modules})
    return {"error": error, "loaded": loaded, "effects": []}


def imported_after(library: str, names: list[str]) -> dict[str, Any]:
    import_error(library)
    return {name: in_a_child(imported, name) for name in names}


def in_a_child(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        found = function(*arguments)
        with os.fdopen(writer, "w") as answer:
            json.dump(found, answer)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return dict(json.loads(text))


def global_state() -> dict[str, Any]:
    return {
        "open files": sorted(os.listdir("/proc/self/fd")),
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "log handlers": list(logging.getLogger().handlers),
        "log level": logging.getLogger().level,
        "warning filters": list(warnings.filters),
        "exit handlers": atexit._ncallbacks(),
        "import path": list(sys.path),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "environment": dict(os.environ),
        "working directory": os.getcwd(),
    }


def put_back(state: dict[str, Any]) -> None:
    for number, handler in state["signal handlers"].items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    logging.getLogger().handlers[:] = state["log handlers"]
    logging.getLogger().setLevel(state["log level"])
    warnings.filters[:] = state["warning filters"]  # type: ignore[index]  # a list, whatever typeshed says
    sys.path[:] = state["import path"]
    multiprocessing.set_start_method(state["start method"], force=True)
    os.environ.clear()
    os.environ.update(state["environment"])
    os.chdir(state["working directory"])
    for module in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[module]


def touches(event: str, args: tuple[Any, ...]) -> bool:
    if event == "open":
        path, mode, flags = args
        if "__pycache__" in str(path):  # the compiler's, and worth minutes on a machine that runs us first
            return False
        return bool(flags & WRITING) or (isinstance(mode, str) and any(letter in mode for letter in "wax+"))
    return event.startswith(TOUCHING)


def effects_of(names: list[str]) -> dict[str, list[str]]:
    state = global_state()
    for name in names:
        import_error(name)
    put_back(state)
    events: list[str] = []

    def record(event: str, args: tuple[Any, ...]) -> None:
        if touches(event, args):
            events.append(f"{event} {str(args)[:120]}")

    def record_thread(self: threading.Thread) -> None:
        events.append(f"thread {self.name}")

    sys.addaudithook(record)
    threading.Thread.start = record_thread  # type: ignore[method-assign]  # before 3.12 no audit event says it
    effects = {}
    for name in names:
        events.clear()
        before = global_state()
        import_error(name)
        after = global_state()
        effects[name] = events + [f"changed: {what}" for what in before if before[what] != after[what]]
    return effects


def main() -> None:
    names = sys.argv[1:]
    for library in PRELOADED:
        importlib.import_module(library)
    report: dict[str, dict[str, Any]] = {}
    for package, library in SLOW.items():
        slow = [name for name in names if name == package or name.startswith(package + ".")]
        report |= in_a_child(imported_after, library, slow)
    report |= {name: in_a_child(imported, name) for name in names if name not in report}
    for name, effects in effects_of(names).items():
        report[name]["effects"] = effects
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
