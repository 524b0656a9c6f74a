"""The verbs of `kara`: each one a function of its arguments and an attachment to the cache."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from kara_cache.attachment import Attachment
from kara_cache.cli import screen
from kara_cache.quantity import format_bytes
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import encode_info

_COPY_CHUNK = 8 << 20


def kara_path(attachment: Attachment, text: str) -> str:
    """A path of the mount table from what people write: /mount/x, kara://mount/x, kara::url or url."""
    text = text.removeprefix("kara::")
    if text.startswith("kara://"):
        return "/" + text[len("kara://") :].strip("/")
    if "://" in text:
        return attachment.kara_path(text)
    return text if text == "/" else text.rstrip("/")


def list_directory(attachment: Attachment, arguments: argparse.Namespace) -> None:
    entries = attachment.client.list(kara_path(attachment, arguments.path), recursive=arguments.recursive)
    for info in entries:
        screen.print_entry(info, long=arguments.long, as_json=arguments.json)


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
        _copy_out(attachment, info, start, min(stop, info.size), sys.stdout.buffer)
    sys.stdout.buffer.flush()


def copy(attachment: Attachment, arguments: argparse.Namespace) -> None:
    """Either side may be local; a file appears whole or not at all."""
    source, target = arguments.source, arguments.target
    if _is_local(source) == _is_local(target):
        raise ValueError("one side is in the cache (/mount/..., kara://, a url), the other local (./x)")
    if _is_local(source):
        _upload(attachment, Path(source), kara_path(attachment, target))
    else:
        _download(attachment, kara_path(attachment, source), Path(target), recursive=arguments.recursive)


def free(attachment: Attachment, arguments: argparse.Namespace) -> None:
    path = kara_path(attachment, arguments.path)
    pages, size = attachment.client.free(path, recursive=arguments.recursive)
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
            str(status.get("address", "")),
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
        [f"/{m['name']}", m["url"], m["freshness"], str(m["replicas"]), "read-only" if m["read_only"] else ""]
        for m in table
    ]
    screen.print_table(rows, ["PATH", "STORE", "FRESHNESS", "REPLICAS", ""])


def explain(attachment: Attachment, arguments: argparse.Namespace) -> None:
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
            print(f"worker    {answer['id']}: {answer['error']}")
        else:
            print(
                f"worker    {answer['id']}: {answer['cached']} of {answer['pages']} pages {_runs(answer['runs'])}"
            )


def _runs(runs: list[list[int]]) -> str:
    return " ".join(f"{first}-{last}" if first != last else str(first) for first, last in runs[:20])


def _file(attachment: Attachment, text: str) -> FileInfo:
    info = attachment.client.info(kara_path(attachment, text))
    if info.is_dir:
        raise IsADirectoryError(f"{info.path} is a directory")
    return info


def _is_local(text: str) -> bool:
    return text.startswith((".", "~")) or (
        not text.startswith("/") and "://" not in text and "::" not in text
    )


def _copy_out(
    attachment: Attachment, info: FileInfo, start: int, stop: int, out: Any, bar: Any = None
) -> None:
    buffer = memoryview(bytearray(min(_COPY_CHUNK, max(0, stop - start))))
    while start < stop:
        count = attachment.client.read_into(info, start, buffer[: min(len(buffer), stop - start)])
        if not count:
            raise EOFError(f"{info.path} ended at byte {start}, expected {stop}")
        out.write(buffer[:count])
        start += count
        if bar is not None:
            bar.update(count)


def _download(attachment: Attachment, path: str, target: Path, *, recursive: bool) -> None:
    info = attachment.client.info(path)
    if info.is_dir and not recursive:
        raise IsADirectoryError(f"{path} is a directory: copy it with -r")
    files = list(attachment.client.list(path, recursive=True)) if info.is_dir else [info]
    target = target.expanduser()
    began, total = time.monotonic(), sum(file.size for file in files)
    with screen.progress(total, path.rsplit("/", 1)[-1]) as bar:
        for file in files:
            if info.is_dir:
                local = target / file.path[len(path) + 1 :]
            else:
                local = target / path.rsplit("/", 1)[-1] if target.is_dir() else target
            _download_file(attachment, file, local, bar)
    _report(len(files), total, time.monotonic() - began)


def _download_file(attachment: Attachment, file: FileInfo, local: Path, bar: Any) -> None:
    local.parent.mkdir(parents=True, exist_ok=True)
    partial = local.with_name(f".{local.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as out:
            _copy_out(attachment, file, 0, file.size, out, bar)
        partial.replace(local)
    finally:
        partial.unlink(missing_ok=True)


def _upload(attachment: Attachment, source: Path, target: str) -> None:
    source = source.expanduser()
    began, size = time.monotonic(), source.stat().st_size
    with (
        source.open("rb") as file,
        attachment.client.open_writer(target) as writer,
        screen.progress(size, source.name) as bar,
    ):
        while chunk := file.read(_COPY_CHUNK):
            writer.write(chunk)
            bar.update(len(chunk))
        writer.commit()
    _report(1, size, time.monotonic() - began)


def _report(files: int, size: int, seconds: float) -> None:
    rate = format_bytes(int(size / seconds)) if seconds > 0 else "-"
    print(f"copied {files} files, {format_bytes(size)} in {seconds:.2f} s ({rate}/s)", file=sys.stderr)


def _size(value: Any) -> str:
    return format_bytes(int(value)) if value is not None else "-"
