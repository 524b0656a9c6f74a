"""The verbs of `kara` and their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import kara_cache
from kara_cache.attachment import Attachment
from kara_cache.cli import commands, load_commands, rule_commands
from kara_cache.cli.storage_parser import add_storage_verbs

Command = Callable[[Attachment, argparse.Namespace], None]

_OVERVIEW = """\
PATH is /mount/rest, kara://mount/rest, or the url of a store (oss://endpoint/bucket/key, s3://bucket/key,
https://host/file): a url is looked up among the cluster's mounts. With no cluster configured, kara uses
this user's private worker and any url works.

exit status: 0 ok, 1 failed, 2 usage, 3 not found, 4 denied, 5 nothing could answer, 6 bad configuration,
130 interrupted

examples:
  kara up --workers 3 --mount data=oss://oss-cn-hangzhou.aliyuncs.com/bucket/train
  kara ls -l /data
  kara cat s3://bucket/notes.txt
  kara cp -r /data/images ./images
  kara load /data/train --watch
  kara explain /data/part-0001.parquet --json
  kara workers --etcd-hosts etcd-0,etcd-1,etcd-2
"""

_EXAMPLES = {
    "ls": """\
  kara ls                                  the mounts
  kara ls -l /data/train
  kara ls -R /data --json | jq .size       every file, a JSON object a line""",
    "stat": """\
  kara stat /data/part-0001.parquet
  kara stat https://example.com/part-0001.parquet --json""",
    "cat": """\
  kara cat /data/notes.txt
  kara cat --range 0:1024 s3://bucket/part-0001.parquet | xxd | head""",
    "cp": """\
  kara cp /data/part-0001.parquet .
  kara cp -r /data/images ./images
  kara cp -r ./run-17 /data/runs/run-17
  kara cp /data/model.pt local:/tmp/model.pt""",
    "free": """\
  kara free /data/part-0001.parquet
  kara free -r /data/train""",
    "load": load_commands.EXAMPLES,
    **rule_commands.EXAMPLES,
    "workers": """\
  kara workers
  kara workers --json --etcd-hosts etcd-0,etcd-1,etcd-2""",
    "mounts": """\
  kara mounts
  kara mounts --json""",
    "explain": """\
  kara explain /data/part-0001.parquet
  kara explain --slowest 20
  kara explain oss://oss-cn-hangzhou.aliyuncs.com/bucket/part-0001.parquet --json""",
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kara",
        description="Look into and steer a kara_cache cluster.",
        epilog=_OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kara_cache {kara_cache.__version__}")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)

    def verb(name: str, run: Command, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"examples:\n{_EXAMPLES[name]}",
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
    sub.add_argument("--json", action="store_true", help="for scripts")

    sub = verb("cat", commands.cat, "Write files to standard output.")
    sub.add_argument("paths", metavar="PATH", nargs="+")
    sub.add_argument("--range", type=_range, metavar="START:STOP", help="bytes, half-open")

    sub = verb("cp", commands.copy, "Copy out of the cache, or through it into the store.")
    sub.add_argument("source", metavar="SOURCE")
    sub.add_argument("target", metavar="TARGET", help="local paths: x, ./x, ~/x, local:/x")
    sub.add_argument("-r", "--recursive", action="store_true", help="a directory with all that is below")

    sub = verb("free", commands.free, "Drop cached pages; the store keeps everything.")
    sub.add_argument("path", metavar="PATH")
    sub.add_argument("-r", "--recursive", action="store_true", help="of every file below")
    sub.add_argument("--json", action="store_true", help="for scripts")

    load_commands.add_arguments(
        verb("load", load_commands.load, "Bring files into the cache, and see that they are there.")
    )

    sub = verb("pin", rule_commands.pin, "Keep what is below a path, whatever else comes.")
    sub.add_argument("path", metavar="PATH")
    sub.add_argument("--json", action="store_true", help="for scripts")

    sub = verb("unpin", rule_commands.unpin, "Keep it no longer.")
    sub.add_argument("path", metavar="PATH")
    sub.add_argument("--json", action="store_true", help="for scripts")

    sub = verb("ttl", rule_commands.set_ttl, "Drop pages below a path so long after they were fetched.")
    sub.add_argument("path", metavar="PATH")
    sub.add_argument("age", metavar="AGE", type=rule_commands.age, help="12h, 7d, or none")
    sub.add_argument("--json", action="store_true", help="for scripts")

    sub = verb("priority", rule_commands.set_priority, "Which pages leave first where there is no room.")
    sub.add_argument("path", metavar="PATH")
    sub.add_argument("priority", choices=("low", "medium", "high", "none"))
    sub.add_argument("--json", action="store_true", help="for scripts")

    sub = verb("pins", rule_commands.list_rules, "Rules for paths: what is pinned, expires, leaves first.")
    sub.add_argument("--json", action="store_true", help="for scripts")

    sub = verb("workers", commands.workers, "Members, their state and what they hold.")
    sub.add_argument("--json", action="store_true", help="for scripts")

    sub = verb("mounts", commands.mounts, "Which paths stand for which stores.")
    sub.add_argument("--json", action="store_true", help="for scripts")

    sub = verb(
        "explain", commands.explain, "Who owns a file and what is cached of it; or why reads were slow."
    )
    sub.add_argument("path", metavar="PATH", nargs="?")
    sub.add_argument(
        "--slowest", metavar="N", type=int, help="the slowest reads of the last minutes, by stage"
    )
    sub.add_argument("--json", action="store_true", help="for scripts")

    add_storage_verbs(verbs, _connection)
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
