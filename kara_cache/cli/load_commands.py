"""`kara load`: bring data into the cache, watch it, and see what came of it."""

from __future__ import annotations

import argparse
import sys
import time

from kara_cache import jobs
from kara_cache.attachment import Attachment
from kara_cache.cli import screen
from kara_cache.cli.commands import kara_path
from kara_cache.cli.exit_code import UsageError
from kara_cache.load_job import LoadJob, LoadOptions, LoadReceipt, LoadState, is_job_id, job_document
from kara_cache.quantity import format_bytes, parse_bytes

EXAMPLES = """\
  kara load /data/train --watch
  kara load s3://bucket/train --replicas 2 --bandwidth 200MB/s --verify
  kara load /data/train --filter '\\.parquet$' --json
  kara load --list
  kara load --receipt /data/train
  kara load --stop /data/train"""


class LoadUnfinished(Exception):
    """The job ended and not everything is there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", nargs="?", help="a file, or a directory with all below")
    verbs = parser.add_argument_group("in place of loading").add_mutually_exclusive_group()
    verbs.add_argument("--list", action="store_true", help="jobs that run, and those of the last days")
    verbs.add_argument("--stop", metavar="PATH|ID", help="end a job; what is loaded stays")
    verbs.add_argument("--receipt", metavar="PATH|ID", help="what came of a job")
    verbs.add_argument("--progress", metavar="PATH|ID", help="how far a job is")
    parser.add_argument(
        "-w", "--watch", action="store_true", help="wait for the end, with a bar; fail with it"
    )
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="workers that get each page")
    parser.add_argument("--bandwidth", type=_rate, metavar="RATE", help="of each worker: 200MB/s")
    parser.add_argument("--requests", type=float, metavar="N", help="to the store, a second, of each worker")
    parser.add_argument("--filter", metavar="REGEX", help="only files whose path below PATH it is found in")
    parser.add_argument("--verify", action="store_true", help="read every page back and compare checksums")
    parser.add_argument("--again", action="store_true", help="fetch also what is in the cache already")
    parser.add_argument("--metadata-only", action="store_true", help="sizes and versions, no pages")
    parser.add_argument("--count-first", action="store_true", help="list everything before the first page")
    parser.add_argument("--json", action="store_true", help="for scripts")


def load(attachment: Attachment, arguments: argparse.Namespace) -> None:
    client = attachment.client
    if arguments.list:
        _print_list(jobs.list_loads(client), as_json=arguments.json)
        return
    for verb in (arguments.stop, arguments.receipt, arguments.progress):
        if verb is not None:
            _about(attachment, arguments, verb if is_job_id(verb) else kara_path(attachment, verb))
            return
    if arguments.path is None:
        raise UsageError("kara load: a PATH to load, or one of --list, --stop, --receipt, --progress")
    job = jobs.submit_load(client, kara_path(attachment, arguments.path), _options(arguments))
    if arguments.watch:
        job = _watch(attachment, job)
    if arguments.json:
        screen.print_json(job_document(job))
    elif not arguments.watch:
        print(f"{job.id}  {job.path}  {job.state.value}")
    elif job.receipt is not None:
        _print_receipt(job, job.receipt)
    if arguments.watch and job.state is not LoadState.SUCCEEDED:
        raise LoadUnfinished(f"{job.path}: {job.state.value}: {job.message}")


def _options(arguments: argparse.Namespace) -> LoadOptions:
    try:
        return LoadOptions(
            replicas=arguments.replicas,
            skip_if_cached=not arguments.again,
            metadata_only=arguments.metadata_only,
            verify=arguments.verify,
            partial_listing=not arguments.count_first,
            bandwidth_bytes_per_s=arguments.bandwidth,
            requests_per_s=arguments.requests,
            file_filter=arguments.filter,
        )
    except ValueError as exc:
        raise UsageError(f"kara load: {exc}") from None


def _about(attachment: Attachment, arguments: argparse.Namespace, path_or_id: str) -> None:
    if arguments.stop is not None:
        job = jobs.stop_load(attachment.client, path_or_id)
    else:
        job = jobs.load_progress(attachment.client, path_or_id)
    if arguments.json:
        receipt = job_document(job)["receipt"]
        screen.print_json(receipt if arguments.receipt is not None else job_document(job))
    elif arguments.receipt is None:
        _print_list([job], as_json=False)
    elif job.receipt is not None:
        _print_receipt(job, job.receipt)
    else:
        print(f"{job.path} is {job.state.value}: no receipt", file=sys.stderr)
    if arguments.receipt is not None and job.state is not LoadState.SUCCEEDED:
        raise LoadUnfinished(f"{job.path}: {job.state.value} {job.message}".rstrip())


def _watch(attachment: Attachment, job: LoadJob) -> LoadJob:
    """A bar of bytes on a terminal: what is left of the listing makes the time that is left."""
    with screen.progress(0, job.path.rsplit("/", 1)[-1]) as bar:

        def show(now: LoadJob) -> None:
            progress = now.progress
            bar.total = progress.bytes_listed if progress.listing_complete else None
            bar.n = progress.bytes
            files = f"{progress.files} of {progress.files_listed}{'' if progress.listing_complete else '+'}"
            state = now.state.value.lower()
            if now.state is LoadState.VERIFYING:
                state = f"verifying {progress.files_verified}"
            failures = f", {progress.pages_failed} pages failed" if progress.pages_failed else ""
            bar.set_postfix_str(f"{files} files, {state}{failures}", refresh=False)
            bar.refresh()

        return jobs.wait_load(attachment.client, job.id, on_progress=show)


def _print_list(found: list[LoadJob], *, as_json: bool) -> None:
    if as_json:
        screen.print_json([job_document(job) for job in found])
        return
    rows = [
        [
            job.id,
            job.state.value,
            _share(job),
            str(job.progress.files),
            format_bytes(job.progress.bytes),
            _rate_of(job),
            str(job.progress.pages_failed),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.submitted_s)),
            job.path,
        ]
        for job in found
    ]
    header = ["ID", "STATE", "DONE", "FILES", "BYTES", "RATE", "FAILED", "SUBMITTED", "PATH"]
    screen.print_table(rows, header)


def _print_receipt(job: LoadJob, receipt: LoadReceipt) -> None:
    how = "read and compared" if receipt.content_verified else "found"
    for name, value in (
        ("path", job.path),
        ("job", job.id),
        ("state", job.state.value),
        ("files", f"{receipt.files}, {format_bytes(receipt.bytes)}"),
        ("pages", f"{receipt.pages_present} of {receipt.pages_expected} {how}"),
        ("fetched", f"{format_bytes(receipt.bytes_fetched)} in {receipt.store_requests} store requests"),
        ("seconds", f"{receipt.seconds:.1f}"),
        ("manifest", receipt.manifest),
    ):
        print(f"{name:9} {value}")
    for reason, pages in sorted(receipt.failed.items()):
        print(f"failed    {pages} pages: {reason}")
        for path in receipt.samples.get(reason, ()):
            print(f"          {path}")


def _share(job: LoadJob) -> str:
    return f"{100 * job.progress.fraction:.0f}%" if job.progress.listing_complete else "-"


def _rate_of(job: LoadJob) -> str:
    seconds = job.progress.seconds
    return f"{format_bytes(int(job.progress.bytes_fetched / seconds))}/s" if seconds else "-"


def _rate(text: str) -> int:
    try:
        size = parse_bytes(text.removesuffix("/s"))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}: {exc}") from None
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: want more than 0")
    return size
