"""`kara pin`, `unpin`, `ttl`, `priority` and `pins`: rules for paths."""

from __future__ import annotations

import argparse

from kara_cache import rules
from kara_cache.attachment import Attachment
from kara_cache.cli import screen
from kara_cache.cli.commands import kara_path
from kara_cache.path_rule import PathRule, rule_document
from kara_cache.quantity import parse_seconds

EXAMPLES = {
    "pin": """\
  kara pin /data/models
  kara pin s3://bucket/validation""",
    "unpin": """\
  kara unpin /data/models""",
    "ttl": """\
  kara ttl /data/scratch 1d
  kara ttl /data/scratch none""",
    "priority": """\
  kara priority /data/raw low
  kara priority /data/raw none""",
    "pins": """\
  kara pins
  kara pins --json""",
}


def pin(attachment: Attachment, arguments: argparse.Namespace) -> None:
    _show(rules.pin(attachment.client, kara_path(attachment, arguments.path)), arguments)


def unpin(attachment: Attachment, arguments: argparse.Namespace) -> None:
    _show(rules.unpin(attachment.client, kara_path(attachment, arguments.path)), arguments)


def set_ttl(attachment: Attachment, arguments: argparse.Namespace) -> None:
    _show(rules.set_ttl(attachment.client, kara_path(attachment, arguments.path), arguments.age), arguments)


def set_priority(attachment: Attachment, arguments: argparse.Namespace) -> None:
    priority = None if arguments.priority == "none" else arguments.priority
    _show(rules.set_priority(attachment.client, kara_path(attachment, arguments.path), priority), arguments)


def list_rules(attachment: Attachment, arguments: argparse.Namespace) -> None:
    found = rules.list_rules(attachment.client)
    if arguments.json:
        screen.print_json([rule_document(rule) for rule in found])
        return
    screen.print_table([_row(rule) for rule in found], ["PINNED", "TTL", "PRIORITY", "PATH"])


def age(text: str) -> float | None:
    """For argparse: a duration, or `none`."""
    if text == "none":
        return None
    try:
        return parse_seconds(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{exc}, or none") from None


def _show(rule: PathRule, arguments: argparse.Namespace) -> None:
    if arguments.json:
        screen.print_json(rule_document(rule))
    else:
        pinned, ttl, priority, path = _row(rule)
        print(f"{path}: pinned {pinned}, ttl {ttl}, priority {priority}")


def _row(rule: PathRule) -> list[str]:
    ttl = f"{rule.ttl_s:g}s" if rule.ttl_s is not None else "-"
    priority = rule.priority.value if rule.priority is not None else "-"
    return ["yes" if rule.pinned else "no", ttl, priority, rule.path]
