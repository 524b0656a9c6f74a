"""The verbs of `kara`: each one a function of its arguments and an attachment to the cache."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from typing import Any

from kara_cache.attachment import Attachment
from kara_cache.cli import screen, slowest, transfer
from kara_cache.cli.exit_code import UsageError
from kara_cache.quantity import format_bytes
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import encode_info


def kara_path(attachment: Attachment, text: str) -> str:
    """A path of the mount table from what people write: /mount/x, kara://mount/x, kara::url or url."""
    text = text.removeprefix("kara::")
    if text.startswith("kara://"):
        return "/" + text[len("kara://") :].strip("/")
    if "://" in text:
        return attachment.kara_path(text)
    return text if text == "/" else text.rstrip("/")


def list_directory(attachment: Attachment, arguments: argparse.Namespace) -> None:
    """A file's name lists that file, as `ls` does."""
    path = kara_path(attachment, arguments.path)
    try:
        for info in attachment.client.list(path, recursive=arguments.recursive):
            screen.print_entry(info, long=arguments.long, as_json=arguments.json)
    except NotADirectoryError:
        screen.print_entry(attachment.client.info(path), long=arguments.long, as_json=arguments.json)


def stat(attachment: Attachment, arguments: argparse.Namespace) -> None:
    info = attachment.client.info(kara_path(attachment, arguments.path))
    if arguments.json:
        screen.print_json(encode_info(info))
        return
    rows = [["path", info.path], ["type", "directory" if info.is_dir else "file"]]
    if not info.is_dir:
        rows += [["size", f"{info.size} ({format_bytes(info.size)})"], ["version", info.version or "none"]]
    rows.append(["modified", screen.local_time(info.mtime)])
    for name, value in rows:
        print(f"{name:9} {value}")


def cat(attachment: Attachment, arguments: argparse.Namespace) -> None:
    for path in arguments.paths:
        info = _file(attachment, path)
        start, stop = arguments.range or (0, info.size)
        transfer.copy_out(attachment.client, info, start, min(stop, info.size), sys.stdout.buffer)
    sys.stdout.buffer.flush()


def copy(attachment: Attachment, arguments: argparse.Namespace) -> None:
    """Either side may be local; a file appears whole or not at all."""
    source, target = arguments.source, arguments.target
    if is_local(source) == is_local(target):
        raise UsageError(
            f"{source} and {target}: one side has to be in the cache (/mount/x, kara://mount/x, a url), the "
            "other local (x, ./x, ~/x, local:/tmp/x)"
        )
    if is_local(source):
        transfer.upload(
            attachment.client,
            transfer.local_path(source),
            kara_path(attachment, target),
            into=target.endswith("/"),
            recursive=arguments.recursive,
        )
    else:
        transfer.download(
            attachment.client,
            kara_path(attachment, source),
            transfer.local_path(target),
            recursive=arguments.recursive,
        )


def free(attachment: Attachment, arguments: argparse.Namespace) -> None:
    path = kara_path(attachment, arguments.path)
    pages, size = attachment.client.free(path, recursive=arguments.recursive)
    if not (pages or arguments.recursive):
        with suppress(FileNotFoundError):  # deleted in the store, which is no reason to keep its pages
            if attachment.client.info(path).is_dir:
                raise IsADirectoryError(f"{path} is a directory: free what is below it with -r")
    if arguments.json:
        screen.print_json({"path": path, "pages": pages, "bytes": size})
    else:
        print(f"freed {pages} pages, {format_bytes(size)}; the store was not touched")


def workers(attachment: Attachment, arguments: argparse.Namespace) -> None:
    statuses = attachment.client.worker_status()
    if arguments.json:
        screen.print_json(statuses)
        return
    rows = [
        [
            str(status.get("id", "?"))[:32],
            str(status.get("address", "")).replace("localhost:0", "unix socket"),
            str(status.get("state", "")),
            str(status.get("pages", "-")),
            _size(status.get("used_bytes")),
            _size(status.get("capacity_bytes")),
            str(status.get("error", "")),
        ]
        for status in statuses
    ]
    screen.print_table(rows, ["ID", "ADDRESS", "STATE", "PAGES", "USED", "CAPACITY", "ERROR"])


def mounts(attachment: Attachment, arguments: argparse.Namespace) -> None:
    table = attachment.client.mounts()
    if arguments.json:
        screen.print_json(table)
        return
    rows = [
        [f"/{m['name']}", m["url"], m["freshness"], str(m["replicas"]), "r" if m["read_only"] else "rw"]
        for m in table
    ]
    screen.print_table(rows, ["PATH", "STORE", "FRESHNESS", "REPLICAS", "ACCESS"])


def explain(attachment: Attachment, arguments: argparse.Namespace) -> None:
    if (arguments.path is None) == (arguments.slowest is None):
        raise UsageError("explain: want a PATH, or --slowest N")
    if arguments.slowest is not None:
        slowest.show(attachment.client.slowest_reads(arguments.slowest), as_json=arguments.json)
        return
    document = attachment.client.explain(kara_path(attachment, arguments.path))
    if arguments.json:
        screen.print_json(document)
        return
    print_explanation(document)


def print_explanation(document: dict[str, Any]) -> None:
    info = document.get("info", {})
    print(f"path      {info.get('path')}")
    print(f"size      {info.get('size')} ({format_bytes(int(info.get('size', 0)))})")
    print(f"version   {info.get('version') or 'none: not kept'}")
    for owner in document.get("owners", ()):
        print(f"stripe    {owner['stripe']}: {', '.join(owner['workers'])}")
    for answer in document.get("workers", ()):
        if "error" in answer:
            held = str(answer["error"])
        else:
            held = f"{answer['cached']} of {answer['pages']} pages {_runs(answer['runs'])}".rstrip()
        print(f"worker    {answer['id']}: {held}")


def _runs(runs: list[list[int]]) -> str:
    return " ".join(f"{first}-{last}" if first != last else str(first) for first, last in runs[:20])


def _file(attachment: Attachment, text: str) -> FileInfo:
    info = attachment.client.info(kara_path(attachment, text))
    if info.is_dir:
        raise IsADirectoryError(f"{info.path} is a directory")
    return info


def is_local(text: str) -> bool:
    if text.startswith((".", "~", transfer.LOCAL)):
        return True
    return not text.startswith("/") and "://" not in text and "::" not in text


def _size(value: Any) -> str:
    return format_bytes(int(value)) if value is not None else "-"
