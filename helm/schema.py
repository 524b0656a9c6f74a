"""Makes values.schema.json from values.yaml: names and defaults are its keys, descriptions its comments.

    python helm/schema.py [--check]

A comment stands above its field and may end in a kind in brackets: `[min: 1]`, `[one of: a, b]`,
`[list of string]`, `[string or null]`, ... Without one, the kind is that of the default.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent / "kara-cache"
_FIELD = re.compile(r"(?P<indent> *)(?P<name>[A-Za-z_]\w*):(?P<rest>.*)")
_KIND = re.compile(r"\s*\[(?P<kind>[^\]]+)\]$")
_LEAF = ("object", "list")
_MOUNT_NAME = r"^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$"
_MOUNT: dict[str, Any] = {
    "type": "object",
    "required": ["url"],
    "additionalProperties": False,
    "properties": {
        "url": {"type": "string", "minLength": 1, "description": "Root in the store, without credentials."},
        "freshness": {
            "type": "string",
            "pattern": "^(revalidate|immutable|max_age=.+)$",
            "description": "revalidate asks at every open, max_age=60s after a while, immutable never.",
        },
        "ttl_s": {"type": ["number", "string"], "description": "Pages older than this are dropped."},
        "replicas": {"type": "integer", "minimum": 1, "description": "Owners that keep a page."},
        "quota_bytes": {
            "type": ["number", "string"],
            "description": "Most that its pages take of a worker.",
        },
        "read_only": {"type": "boolean", "description": "Writes and deletes are refused."},
        "options": {
            "type": "object",
            "description": "Options of the store; secrets as env:NAME or file:/path.",
        },
        "credentials": {
            "type": "object",
            "required": ["secretName", "keys"],
            "additionalProperties": False,
            "description": "Options of the store that come from a Secret.",
            "properties": {
                "secretName": {"type": "string", "minLength": 1},
                "keys": {
                    "type": "object",
                    "additionalProperties": {"type": "string"},
                    "description": "Option of the store -> key in the Secret.",
                },
            },
        },
    },
}
_LOAD: dict[str, Any] = {
    "type": "object",
    "required": ["name", "path"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"},
        "path": {"type": "string", "pattern": "^/", "description": "/MOUNT/prefix"},
        "schedule": {
            "type": "string",
            "description": "As of cron; left out: once, when the release changes.",
        },
        "hook": {"type": "boolean", "description": "Helm waits for it."},
        "replicas": {"type": "integer", "minimum": 1},
        "bandwidth": {"type": "string", "description": "Per worker, for example 200MB/s."},
        "args": {"type": "array", "items": {"type": "string"}, "description": "More arguments of kara load."},
    },
}
_SPECIAL = {
    ("mounts",): {"patternProperties": {_MOUNT_NAME: _MOUNT}, "additionalProperties": False},
    ("loads",): {"items": _LOAD},
}


def schema() -> dict[str, Any]:
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    found = _object(yaml.safe_load(text), _comments(text), ())
    # Helm adds `global` to the values of every chart that is part of another.
    found["properties"]["global"] = {
        "type": "object",
        "description": "Of the chart that this one is part of.",
    }
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of kara-cache", **found}


def _comments(text: str) -> dict[tuple[str, ...], str]:
    """Path of each field -> the comment directly above it."""
    found: dict[tuple[str, ...], str] = {}
    path: list[tuple[int, str]] = []
    words: list[str] = []
    for line in text.splitlines():
        match = _FIELD.match(line)
        if line.strip().startswith("# "):
            words.append(line.strip()[2:])
        elif match:
            indent = len(match["indent"])
            path = [*(step for step in path if step[0] < indent), (indent, match["name"])]
            found[tuple(name for _, name in path)] = " ".join(words)
            words = []
        else:
            words = []
    return found


def _object(
    values: dict[str, Any], comments: dict[tuple[str, ...], str], path: tuple[str, ...]
) -> dict[str, Any]:
    properties = {}
    for name, value in values.items():
        here = (*path, name)
        comment = comments.get(here, "")
        if not comment:
            raise SystemExit(f"values.yaml: {'.'.join(here)} has no comment above it")
        kind = _KIND.search(comment)
        entry: dict[str, Any] = {"description": _KIND.sub("", comment)}
        if isinstance(value, dict) and not (kind and kind["kind"] in _LEAF):
            entry |= _object(value, comments, here)
        else:
            entry |= _kind(kind["kind"] if kind else "", value)
        properties[name] = entry | _SPECIAL.get(here, {})
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _kind(kind: str, value: Any) -> dict[str, Any]:
    if kind == "object":
        return {"type": "object"}
    if kind == "list":
        return {"type": "array"}
    if kind.startswith("list of "):
        return {"type": "array", "items": {"type": kind.removeprefix("list of ")}}
    if kind.startswith("min: "):
        return {"type": "integer", "minimum": int(kind.removeprefix("min: "))}
    if kind.startswith("one of: "):
        return {"enum": kind.removeprefix("one of: ").split(", ")}
    if kind:
        return {"type": re.split(r", | or ", kind)}
    return {"type": {bool: "boolean", int: "integer", float: "number", str: "string"}[type(value)]}


def main() -> int:
    target = CHART / "values.schema.json"
    text = json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv[1:]:
        target.write_text(text, encoding="utf-8")
    elif not target.exists() or target.read_text(encoding="utf-8") != text:
        print(f"{target}: not made from today's values.yaml: run python helm/schema.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
