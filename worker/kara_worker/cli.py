"""`kara-worker`: every key of the configuration as a flag, and how to run one worker or several."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kara_cache
from kara_cache.errors import ConfigError, KaraError
from kara_cache.layered import keys
from kara_cache.mount import Mount, MountTable
from kara_cache.secret_ref import is_secret_key, refuse_literal_secrets
from kara_worker.config import WorkerConfig
from kara_worker.daemon import WorkerDaemon
from kara_worker.detach import detached
from kara_worker.http.loop import run_loop
from kara_worker.supervisor import Supervisor

EXIT_OK = 0
EXIT_FAILED = 1  # started, and then something broke
EXIT_CONFIG = 6  # as `kara`: fix the configuration and start again; restarting helps nothing

_SHORT = {"page_dirs": "--page-dir", "capacity_bytes": "--capacity", "idle_exit_s": "--idle-exit"}
_SWITCHES = (
    "private",
    "trace",
    "guard",
    "admin_anonymous",
    "admin_paths",
    "alluxio_anonymous_writes",
    "etcd_tls_verify_hostname",
)
_RECORD_VARIABLE = "KARA_RECORD"
_EXAMPLES = """\
Every flag is also a key of the [worker] table of --config, and KARA_<KEY> in the environment:
flag > environment > file > default. Mounts are [mounts.NAME] tables in the file.

examples:
  kara-worker --page-dir /ssd/kara --capacity 500GiB --mount data=file:///nfs/datasets
  kara-worker --config /etc/kara/worker.toml --host 0.0.0.0 --secret file:/run/secrets/kara
  kara-worker --etcd-hosts etcd-0,etcd-1,etcd-2 --page-dir /ssd0,/ssd1 --workers 2 \\
              --mount d=oss://oss-cn-hangzhou.aliyuncs.com/bucket \\
              --mount-option d.access_key_id=env:OSS_ID --mount-option d.access_key_secret=env:OSS_SECRET

exit status: 0 drained and stopped, 1 failed, 6 bad configuration
"""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        mounts = _mounts(options.mount, options.mount_option)
        config = WorkerConfig.load(file=options.config, flags=_flags(options), mounts=mounts)
        if options.detach:
            return detached(options.log_file, lambda: _run(config, options), lines=config.workers)
        return _run(config, options)
    except ConfigError as exc:
        print(f"kara-worker: {exc}", file=sys.stderr)
        return EXIT_CONFIG


def _run(config: WorkerConfig, options: argparse.Namespace) -> int:
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if config.workers > 1:
        return Supervisor(config.split(), WorkerDaemon).run()
    record = os.environ.get(_RECORD_VARIABLE)
    try:
        run_loop(WorkerDaemon(config, record=Path(record) if record else None).run())
    except (KaraError, OSError) as exc:
        print(f"kara-worker: {exc}", file=sys.stderr, flush=True)
        return EXIT_CONFIG if isinstance(exc, ConfigError) else EXIT_FAILED
    return EXIT_OK


def _flags(options: argparse.Namespace) -> dict[str, str]:
    """What was given, as text by key of the configuration."""
    flags = {key: getattr(options, key, None) for key in keys(WorkerConfig)}
    given = {key: str(value) for key, value in flags.items() if value is not None}
    refuse_literal_secrets(
        {key: text for key, text in given.items() if is_secret_key(key)}, "the command line"
    )
    return given


def _mounts(texts: Sequence[str], option_texts: Sequence[str]) -> MountTable | None:
    if not texts:
        if option_texts:
            raise ConfigError("--mount-option without --mount: mounts of a file take their options there")
        return None
    settings: dict[str, dict[str, Any]] = {Mount.parse(text).name: {} for text in texts}
    for text in option_texts:
        where, equals, value = text.partition("=")
        name, dot, key = where.partition(".")
        if not equals or not dot or name not in settings:
            known = ", ".join(settings)
            raise ConfigError(f"--mount-option {where!r}: want NAME.KEY=VALUE of one of {known}")
        settings[name][key] = value
        refuse_literal_secrets({key: value}, f"--mount-option {where}")
    parsed = [Mount.parse(text) for text in texts]
    return MountTable(Mount(m.name, m.url, options=settings[m.name]) for m in parsed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kara-worker",
        description="Keep pages of remote files on local SSD and serve them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kara_cache {kara_cache.__version__}")
    parser.add_argument("--config", metavar="FILE", help="TOML; default $KARA_CONFIG")
    for key in keys(WorkerConfig):
        if key == "mounts":
            continue
        flag = _SHORT.get(key, "--" + key.replace("_", "-"))
        if key in _SWITCHES:
            parser.add_argument(flag, dest=key, action=argparse.BooleanOptionalAction, default=None)
        else:
            parser.add_argument(flag, dest=key, metavar="REF" if is_secret_key(key) else "VALUE")
    parser.add_argument("--mount", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--mount-option", action="append", default=[], metavar="NAME.KEY=REF")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--detach", action="store_true", help="go on in the background once it serves")
    parser.add_argument("--log-file", default=os.devnull, metavar="FILE", help="with --detach")
    return parser
