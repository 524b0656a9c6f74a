"""`kara`: the cluster from a terminal."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import kara_cache
from kara_cache.attachment import Attachment
from kara_cache.cli import commands
from kara_cache.cli.exit_code import ExitCode, exit_code
from kara_cache.config import ClientConfig
from kara_cache.errors import ConfigError
from kara_cache.secret_ref import refuse_literal_secrets

_EXAMPLES = """\
PATH is /mount/rest, kara://mount/rest, or the url of a store (oss://endpoint/bucket/key, s3://bucket/key,
https://host/file): a url is looked up among the cluster's mounts. With no cluster configured, kara uses
this user's private worker and any url works.

examples:
  kara up --workers 3 --mount data=oss://oss-cn-hangzhou.aliyuncs.com/bucket/train
  kara ls -l /data
  kara cat s3://bucket/notes.txt
  kara cp -r /data/images ./images
  kara explain /data/part-0001.parquet --json
  kara workers --etcd-hosts etcd-0,etcd-1,etcd-2

exit status: 0 ok, 1 failed, 2 usage, 3 not found, 4 denied, 5 nothing could answer, 6 bad configuration
"""

Command = Callable[[Attachment, argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["up"]:
        # the worker's side lives in its own package, which this one never imports
        return subprocess.call([sys.executable, "-m", "kara_worker.up", *arguments[1:]])
    options = _parser().parse_args(arguments)
    try:
        config = ClientConfig.load(
            file=options.config,
            cluster_name=options.cluster_name,
            etcd_hosts=options.etcd_hosts,
            worker_hosts=options.worker_hosts,
            token=_reference(options.token),
        )
        attachment = Attachment(config, stores=_store_options(options.store_option))
        try:
            options.run(attachment, options)
        finally:
            attachment.close()
    except BrokenPipeError:  # `kara ls | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except KeyboardInterrupt:
        return 130
    except Exception as exc:
        if os.environ.get("KARA_TRACEBACK"):
            raise
        print(f"kara: {_message(exc)}", file=sys.stderr)
        return exit_code(exc)
    return ExitCode.OK


def _message(exc: BaseException) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.strerror}: {exc.filename}" if exc.filename else exc.strerror
    return str(exc) or type(exc).__name__


def _reference(token: str | None) -> str | None:
    """A token on a command line is visible to every user of the machine in `ps`."""
    if token is not None and not token.startswith(("env:", "file:")):
        raise ConfigError("--token: give env:NAME or file:/path, a literal would be visible in ps")
    return token


def _store_options(pairs: Sequence[str]) -> dict[str, dict[str, str]]:
    """`--store-option s3.endpoint_url=...`: by scheme."""
    options: dict[str, dict[str, str]] = {}
    for pair in pairs:
        where, equals, value = pair.partition("=")
        scheme, dot, key = where.partition(".")
        if not equals or not dot:
            raise ConfigError(f"--store-option {where!r}: want SCHEME.KEY=VALUE")
        refuse_literal_secrets({key: value}, f"--store-option {where}")
        options.setdefault(scheme, {})[key] = value
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kara",
        description="Look into and steer a kara_cache cluster.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kara_cache {kara_cache.__version__}")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)

    def verb(name: str, run: Command, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        _connection(sub)
        return sub

    sub = verb("ls", commands.list_directory, "List a directory, the mounts for /.")
    sub.add_argument("path", metavar="PATH", nargs="?", default="/")
    sub.add_argument("-l", "--long", action="store_true", help="sizes in bytes and times")
    sub.add_argument("-R", "--recursive", action="store_true", help="every file below")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")

    sub = verb("stat", commands.stat, "Size, version and time of a file, as the store has them now.")
    sub.add_argument("path", metavar="PATH")
    sub.add_argument("--json", action="store_true")

    sub = verb("cat", commands.cat, "Write files to standard output.")
    sub.add_argument("paths", metavar="PATH", nargs="+")
    sub.add_argument("--range", type=_range, metavar="START:STOP", help="bytes, half-open")

    sub = verb("cp", commands.copy, "Copy out of the cache, or through it into the store.")
    sub.add_argument("source", metavar="SOURCE")
    sub.add_argument("target", metavar="TARGET", help="local paths start with . or ~, or have no leading /")
    sub.add_argument("-r", "--recursive", action="store_true")

    sub = verb("free", commands.free, "Drop cached pages; the store keeps everything.")
    sub.add_argument("path", metavar="PATH")
    sub.add_argument("-r", "--recursive", action="store_true")
    sub.add_argument("--json", action="store_true")

    sub = verb("workers", commands.workers, "Members, their state and what they hold.")
    sub.add_argument("--json", action="store_true")

    sub = verb("mounts", commands.mounts, "Which paths stand for which stores.")
    sub.add_argument("--json", action="store_true")

    sub = verb("explain", commands.explain, "Who owns a file, which of its pages are where, which version.")
    sub.add_argument("path", metavar="PATH")
    sub.add_argument("--json", action="store_true")

    verbs.add_parser(
        "up", help="Start a cluster on this machine: etcd if present, and workers.", add_help=False
    )
    return parser


def _connection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where the cluster is (or KARA_* in the environment, or a file)")
    group.add_argument("--config", metavar="FILE", help="TOML with a [client] table; default $KARA_CONFIG")
    group.add_argument("--cluster-name", metavar="NAME")
    group.add_argument("--etcd-hosts", metavar="H1,H2:PORT")
    group.add_argument("--worker-hosts", metavar="H:P,H:P")
    group.add_argument("--token", metavar="REF", help="env:NAME or file:/path")
    group.add_argument(
        "--store-option", metavar="SCHEME.KEY=REF", action="append", default=[],
        help="for urls without a cluster; secrets as env:NAME or file:/path",
    )  # fmt: skip


def _range(text: str) -> tuple[int, int]:
    start, colon, stop = text.partition(":")
    if not colon or not start.isdigit() or not stop.isdigit() or int(stop) < int(start):
        raise argparse.ArgumentTypeError(f"{text!r}: want START:STOP in bytes, START <= STOP")
    return int(start), int(stop)


if __name__ == "__main__":
    sys.exit(main())
