"""Benchmarks that are commands of their own: run, and their results put into rows of the report."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.scene import Scene
from benchmarks.table_row import Row, Target

_ROOT = Path(__file__).resolve().parents[2]
_MOST_S = 900
_STOP_S = 30
_RESTARTED = 200_000  # pages


def _result(scene: Scene, module: str, *arguments: str) -> dict[str, Any]:
    out = scene.home / f"{module}.json"
    quick = ["--quick"] if scene.settings.tiny and "--quick" not in arguments else []
    run_command(module, "--out", str(out), *arguments, *quick)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def run_command(module: str, *arguments: str) -> None:
    """RuntimeError with the end of what it said where it fails."""
    code, said = _run([sys.executable, "-m", f"benchmarks.{module}", *arguments])
    if code:
        raise RuntimeError(f"benchmarks.{module} ended with {code}: {said[-500:]}")


def _run(command: list[str]) -> tuple[int, str]:
    """Its exit code and what it said on stderr. Interrupted with us, so that it stops what it has started."""
    process = subprocess.Popen(
        command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, said = process.communicate(timeout=_MOST_S)
    except BaseException:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_STOP_S)
        process.kill()
        process.wait(10)
        raise
    return process.returncode, said


def foreground(scene: Scene) -> list[Row]:
    """What readers of cached pages feel while cold files stream through their worker."""
    found = _result(
        scene, "foreground", "--home", str(scene.home), "--rounds", str(min(3, scene.settings.rounds))
    )
    rounds = found["rounds"]
    detail = {
        name.replace("_", " "): sum(one[name] for one in rounds) / len(rounds) for name in rounds[0]
    } | {"worker's CPU us/MiB streamed": found["worker_cpu_us_per_mib"]}
    ratios = [one["streaming_p99_ms"] / one["quiet_p99_ms"] for one in rounds]
    what = "p99 of cached reads while a cold file streams / while nothing does"
    cold = "control: bytes from the store / bytes of the cold file that were streamed"
    return [
        Row("foreground_p99", what, ratios, Target(3.0, at_least=False), detail=detail),
        Row("control_foreground", cold, [found["fetched_ratio"]], Target(0.99)),
    ]


def prewarm(scene: Scene) -> list[Row]:
    """Loading many objects before a job, beside a parallel copy of them."""
    less = ("--objects", "10000", "--big", "2", "--big-bytes", "268435456", "--home", str(scene.home))
    found = _result(scene, "prewarm", *less)
    detail = {name.replace("_", " "): value for name, value in found.items() if isinstance(value, float)}
    small, most = f"load of {found['objects']:,} small objects", Target(1.01, at_least=False)
    return [
        Row(
            "prewarm_small",
            f"{small} / a parallel copy of them, objects a second",
            [found["small_ratio"]],
            Target(2.0),
            detail=detail,
        ),
        Row(
            "prewarm_big", "load of large files / what their line carries", [found["big_ratio"]], Target(0.95)
        ),
        Row(
            "prewarm_fetched",
            "loads: bytes from the store / the bytes of what they load, the larger of both",
            [max(found["small_fetched_ratio"], found["big_fetched_ratio"])],
            most,
        ),
        Row(
            "prewarm_p99",
            "p99 of cached reads while either load runs / while nothing does",
            [found["p99_ratio"]],
            Target(3.0, at_least=False),
        ),
        Row(
            "prewarm_p99_past",
            "the same while the same is read from the store past the cache",
            [max(found["copy_p99_ms"], found["line_p99_ms"]) / found["idle_p99_ms"]],
            None,
        ),
        Row(
            "prewarm_p99_others",
            "the same while other workers load as fast, or plain connections write large files to this disk",
            [max(found["others_p99_ms"], found["kept_p99_ms"]) / found["idle_p99_ms"]],
            None,
        ),
        Row("prewarm_stop", "a load is stopped", [found["stop_s"]], Target(1.0, "s", at_least=False), "s"),
        Row(
            "control_prewarm",
            "control: loads: bytes from the store / the bytes of what they load, the smaller of both",
            [min(found["small_fetched_ratio"], found["big_fetched_ratio"])],
            Target(0.99),
        ),
    ]


def page_churn(scene: Scene) -> list[Row]:
    """One page in for each that goes, restart and memory: files, segments, and no store at all."""
    pages = _RESTARTED // 20 if scene.settings.tiny else _RESTARTED
    found = _result(scene, "page_churn", "--dir", str(scene.home), "--quick", "--restart", str(pages))
    rows, least = [], "unlink + create + rename / what the kernel alone takes for segments"
    for churn in found["churn"]:
        size = int(churn["size"])
        detail = {
            f"{kind}, {what}": us
            for what, values in (("us", churn["wall_us"]), ("CPU us", churn["cpu_us"]))
            for kind, us in values.items()
        }
        what = f"unlink + create + rename / a page through the store of segments, {size >> 10:,} KiB"
        target = {1 << 20: Target(4.0), 64 << 10: Target(10.0)}.get(size)
        rows += [
            Row(f"churn_{size}", f"{what}, time", [churn["unlink_create_wall"]], target, detail=detail),
            Row(f"churn_cpu_{size}", f"{what}, CPU", [churn["unlink_create_cpu"]], None),
            Row(f"churn_most_{size}", f"{least}, {size >> 10:,} KiB, time", [churn["most_wall"]], None),
        ]
    growth, most = found["get_growth"], Target(1.2, at_least=False)
    within = Target(0.3, "s", at_least=False)
    times = {"after a clean end, s": found["restart_clean_s"], "after a kill, s": found["restart_killed_s"]}
    return [
        *rows,
        Row(
            "churn_restart",
            f"restart of a store of segments that has {pages:,} pages",
            [found["restart_clean_s"]],
            within,
            "s",
            times,
        ),
        Row(
            "churn_growth",
            "lookup of a page that is not open, of the most pages / the fewest",
            [growth],
            most,
        ),
        Row(
            "churn_index",
            "memory of the index a page",
            [found["index_bytes_per_page"]],
            Target(200, "bytes", at_least=False),
            "bytes",
            {"with the policy of eviction, bytes": found["with_policy_bytes_per_page"]},
        ),
        Row(
            "control_churn",
            "control: pages that the restarted store had, of those that were put",
            [found["pages"] / pages],
            Target(1.0),
        ),
    ]


def image_folder(scene: Scene) -> list[Row]:
    """Images of 110 KB, each opened, read and closed, and an epoch of a DataLoader that decodes them."""
    missing = [name for name in ("torch", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        scene.skipped["image folder"] = f"not installed: {', '.join(missing)}"
        return []
    found = _result(scene, "image_folder")
    rows = []
    for name in [name for name in found["reads"][0] if name != "open()"]:
        ratios = [one["open()"]["wall us"] / one[name]["wall us"] for one in found["reads"]]
        detail = {
            f"{who}, {metric}": statistics.median(one[who][metric] for one in found["reads"])
            for who in ("open()", name)
            for metric in found["reads"][0][name]
        }
        what = f"images of 110 KB: open() on the local disk / {name}, time of an image"
        rows.append(Row(f"images_{name}", what, ratios, None, detail=detail))
    for name in [name for name in found["epochs"][0] if name != "local"]:
        ratios = [one[name]["images/s"] / one["local"]["images/s"] for one in found["epochs"]]
        what = f"images of 110 KB, decoded by a DataLoader: {name} / local disk, images a second"
        rows.append(Row(f"images_loader_{name}", what, ratios, None))
    what, few = "control: images: bytes that the store sent", Target(0, "", at_least=False)
    return [
        *rows,
        Row(
            "control_images_cold",
            f"{what} while the cache was empty",
            [found["cold_bytes"]],
            Target(1, ""),
            "",
        ),
        Row("control_images_warm", f"{what} while they were measured", [found["warm_bytes"]], few, ""),
    ]
