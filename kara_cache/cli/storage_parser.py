"""The arguments of `kara row` and `kara obj`: as the published `kara_storage` command has them, and more."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kara_cache.attachment import Attachment
from kara_cache.cli import object_commands, row_commands, row_interchange
from kara_cache.storage.interchange import KINDS

if TYPE_CHECKING:
    _Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

Command = Callable[[Attachment, argparse.Namespace], None]
Connection = Callable[[argparse.ArgumentParser], None]

_URL = """\
URL is file:///dir, file://dir (relative), oss://endpoint/bucket[/prefix], s3://bucket[/prefix] or
http(s)://host/prefix (read-only); with kara:: in front it is read through the cache."""

_ROW_EXAMPLES = {
    "view": """\
  kara row https://kara-public.oss-cn-beijing.aliyuncs.com/test view test_ns mydb
  kara row file:///datasets view web pages -v 3 --begin 1000
  kara row file:///datasets view web pages | jq .title""",
    "ls": """\
  kara row file:///datasets ls              every data set, as NAMESPACE/KEY
  kara row file:///datasets ls web pages    its versions""",
    "info": """\
  kara row kara::oss://oss-cn-beijing.aliyuncs.com/bucket info web pages
  kara row file:///datasets info web pages --json""",
    "head": """\
  kara row file:///datasets head web pages
  kara row file:///datasets head web pages -n 3 --begin 1000 | jq .""",
    "verify": """\
  kara row file:///datasets verify web pages
  kara row file:///datasets verify web pages -v 3 --json""",
    "import": """\
  kara row file:///datasets import web pages pages.jsonl
  kara row oss://oss-cn-beijing.aliyuncs.com/bucket import web pages ./parquet -v 2026-11
  kara row file:///datasets import vision digits ./digits --kind images""",
    "export": """\
  kara row file:///datasets export web pages pages.parquet
  kara row kara::s3://bucket export vision digits digits.tar -v 3""",
}
_OBJ_EXAMPLES = {
    "save": """\
  kara obj oss://oss-cn-beijing.aliyuncs.com/bucket save models bert ./checkpoint
  kara obj file:///shared save models bert ./checkpoint -v epoch-3""",
    "load": """\
  kara obj oss://oss-cn-beijing.aliyuncs.com/bucket load models bert ./bert --app-secret env:SECRET
  kara obj kara::s3://bucket load models bert ./bert -v epoch-3""",
    "ls": """\
  kara obj file:///shared ls                      every directory, as NAMESPACE/KEY
  kara obj file:///shared ls models bert          its versions
  kara obj file:///shared ls models bert -v 0 -l  its files""",
    "verify": """\
  kara obj file:///shared verify models bert
  kara obj file:///shared verify models bert ./bert     is it what was saved?
  kara obj file:///shared verify models bert -v epoch-3 --json""",
}


def add_storage_verbs(verbs: _Verbs, connection: Connection) -> None:
    _add_rows(verbs, connection)
    _add_objects(verbs, connection)


def _add_rows(verbs: _Verbs, connection: Connection) -> None:
    text = "Rows in a store: view, list, verify."
    examples = """\
  kara row file:///datasets view web pages --begin 1000
  kara row file:///datasets view --help     for each ACTION"""
    actions = _kind(verbs, "row", text, examples)

    def action(name: str, run: Command, text: str) -> argparse.ArgumentParser:
        return _action(actions, name, run, text, _ROW_EXAMPLES[name], connection)

    sub = action("view", row_commands.view, "Look at rows in a full-screen viewer; JSON lines if piped.")
    _dataset(sub)
    _begin(sub)
    _shown_as(sub)

    sub = action("ls", row_commands.list_rows, "List data sets, or the versions of one.")
    _dataset(sub, optional=True, version=False)
    _json(sub, "for scripts; names as one JSON object a line")

    sub = action("info", row_commands.info, "Rows, bytes and versions.")
    _dataset(sub)
    _json(sub)

    sub = action("head", row_commands.head, "The first rows, as JSON lines.")
    _dataset(sub)
    sub.add_argument("-n", "--count", metavar="N", type=_natural, default=10, help="rows; default 10")
    _begin(sub)
    _shown_as(sub)

    text = f"Make a version of the rows of a file or directory ({', '.join(KINDS)}); prints its name."
    sub = action("import", row_interchange.import_, text)
    _dataset(sub, version="name of the new version; default: the smallest number that is free")
    _interchange(sub, "source", "of rows")
    sub.add_argument("--append", action="store_true", help="to a version that is there")

    text = f"Write the rows of a version to a new file or directory ({', '.join(KINDS)})."
    sub = action("export", row_interchange.export, text)
    _dataset(sub)
    _interchange(sub, "target", "that rows have")

    sub = action("verify", row_commands.verify, "Read every row and compare it with its checksum.")
    _dataset(sub)
    _json(sub)


def _add_objects(verbs: _Verbs, connection: Connection) -> None:
    text = "Directories in a store: save, load, list, verify."
    examples = """\
  kara obj file:///shared save models bert ./checkpoint
  kara obj file:///shared load models bert ./bert -v 0
  kara obj file:///shared load --help       for each ACTION"""
    actions = _kind(verbs, "obj", text, examples, aliases=["object"])

    def action(name: str, run: Command, text: str) -> argparse.ArgumentParser:
        return _action(actions, name, run, text, _OBJ_EXAMPLES[name], connection)

    sub = action("save", object_commands.save, "Save a directory as a version; prints its name.")
    _dataset(sub, version="name of the version; default: the smallest number that is free")
    sub.add_argument("path", metavar="PATH", help="local directory")
    sub.add_argument("--verify", action="store_true", help="read blobs that are there, replace damaged ones")
    _json(sub)

    sub = action("load", object_commands.load, "Load a version into a directory; prints its name.")
    _dataset(sub)
    sub.add_argument("path", metavar="PATH", help="local directory; other files in it stay")
    sub.add_argument("--delete", action="store_true", help="delete files in PATH that the version lacks")
    _json(sub)

    sub = action("ls", object_commands.list_objects, "List directories, versions of one, or its files.")
    _dataset(sub, optional=True, version="the files of this version, or of latest")
    sub.add_argument("-l", "--long", action="store_true", help="modes, sizes in bytes and times of files")
    _json(sub, "for scripts; names and files as one JSON object a line")

    sub = action("verify", object_commands.verify, "Read every blob of a version and compare its digests.")
    _dataset(sub)
    sub.add_argument("path", metavar="PATH", nargs="?", help="read the files of this local directory instead")
    _json(sub)


def _kind(verbs: _Verbs, name: str, text: str, examples: str, **options: Any) -> _Verbs:
    parser = verbs.add_parser(
        name,
        help=text,
        description=f"{text}\n\n{_URL}",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
    parser.add_argument("url", metavar="URL")
    return parser.add_subparsers(metavar="ACTION", required=True)


def _action(
    actions: _Verbs, name: str, run: Command, text: str, examples: str, connection: Connection
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"{_URL}\n\nexamples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    group = parser.add_argument_group("credentials of oss:// and s3://")
    group.add_argument("--app-key", metavar="REF", help="env:NAME, file:/path or the key; $KARA_APP_KEY")
    group.add_argument("--app-secret", metavar="REF", help="env:NAME or file:/path; $KARA_APP_SECRET")
    connection(parser)
    return parser


def _dataset(
    parser: argparse.ArgumentParser,
    *,
    optional: bool = False,
    version: str | bool = "name of the version; default: latest",
) -> None:
    count = {"nargs": "?"} if optional else {}
    parser.add_argument("namespace", metavar="NS", **count)  # type: ignore[arg-type]  # of a dict of options
    parser.add_argument("key", metavar="KEY", **count)  # type: ignore[arg-type]  # as above
    if version:
        parser.add_argument("-v", "--version", metavar="VERSION", help=str(version))


def _begin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--begin", metavar="N", type=_natural, default=0, help="first row; default 0")


def _shown_as(parser: argparse.ArgumentParser) -> None:
    text = "of rows; default: json, text or bytes, as each row is"
    parser.add_argument("--serialization", choices=("json", "msgpack", "raw"), help=text)


def _interchange(parser: argparse.ArgumentParser, path: str, text: str) -> None:
    parser.add_argument(path, metavar=path.upper(), help="local file or directory")
    parser.add_argument("--kind", choices=KINDS, help="default: as its name tells")
    text = f"{text}; default: json, msgpack for images and webdataset"
    parser.add_argument("--serialization", choices=("json", "msgpack", "raw"), help=text)
    _json(parser)


def _json(parser: argparse.ArgumentParser, text: str = "for scripts") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: want a number, 0 or more")
    return int(text)
