"""What the documents say about keys, flags, links and examples is so."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kara_cache.cli.parser import make_parser
from kara_cache.config import ClientConfig
from kara_cache.layered import from_mapping, keys, layered
from kara_cache.local_worker import PrivateWorkerConfig
from kara_cache.mount import Mount
from kara_worker import cli as worker_cli
from kara_worker import up
from kara_worker.config import WorkerConfig

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "docs" / "configuration.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS: dict[str, type[Any]] = {
    "Client": ClientConfig,
    "Worker": WorkerConfig,
    "Mount": Mount,
    "Private worker": PrivateWorkerConfig,
}
NOT_IN_A_TABLE = {"name"}  # of a mount: the name of the table
WITHOUT_VARIABLE = {"mounts"}


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def rows(section: str) -> list[dict[str, str]]:
    """The rows of a section's table by column, without the back quotes around a cell."""
    body = re.split(rf"^## {section}$", text(CONFIGURATION), flags=re.MULTILINE)[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("|")]
    header, rule, *cells = lines
    assert set("".join(rule)) <= {"-", "|"}
    assert all(len(row) == len(header) for row in cells), section
    return [{name: cell.strip("` ") for name, cell in zip(header, row, strict=True)} for row in cells]


def value_of(config: Any, key: str) -> Any:
    """By flat key: the field itself, or a field of a group."""
    for field in dataclasses.fields(config):
        if field.name == key:
            return getattr(config, key)
    for field in dataclasses.fields(config):
        group, front = getattr(config, field.name), f"{field.name}_"
        inner = key if field.metadata.get("inline") else key.removeprefix(front)
        if not dataclasses.is_dataclass(group) or (inner == key and not field.metadata.get("inline")):
            continue
        try:
            return value_of(group, inner)
        except LookupError:
            continue
    raise LookupError(key)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_in_its_table_and_no_other(section: str) -> None:
    documented = [row["key"] for row in rows(section)]
    assert len(documented) == len(set(documented))
    assert set(documented) == set(keys(SECTIONS[section])) - NOT_IN_A_TABLE


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_are_as_documented(section: str) -> None:
    """Read by the same rules as a value that a user gives."""
    cls = SECTIONS[section]
    made = Mount("m", "/") if cls is Mount else cls()
    for row in rows(section):
        key, cell = row["key"], row["default"]
        if key == "url":
            continue
        default = value_of(made, key)
        if cell == "none":
            assert default is None or (hasattr(default, "__len__") and len(default) == 0), key
        elif cls is Mount:
            given: Any = int(cell) if cell.isdigit() else {"true": True, "false": False}.get(cell, cell)
            assert (
                value_of(from_mapping(Mount, {key: given, "url": "/"}, "document", name="m"), key) == default
            )
        else:
            assert value_of(layered(cls, env={f"KARA_{key.upper()}": cell}), key) == default, key


@pytest.mark.parametrize("section", ["Client", "Worker", "Private worker"])
def test_variables_are_named_as_they_are_read(section: str) -> None:
    for row in rows(section):
        if row["key"] not in WITHOUT_VARIABLE:
            assert row["environment"] == f"KARA_{row['key'].upper()}"


def test_flags_of_the_worker() -> None:
    known = options(worker_cli._parser())
    documented = {row["flag"]: row["key"] for row in rows("Worker")}
    assert set(documented) <= known
    for flag, key in documented.items():
        if key != "mounts":
            assert getattr(worker_cli._parser().parse_args([flag, *argument(flag)]), key) is not None


def argument(flag: str) -> list[str]:
    action = next(a for a in worker_cli._parser()._actions if flag in a.option_strings)
    return [] if action.nargs == 0 else ["x"]


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Every flag, also of subcommands."""
    found: set[str] = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                found |= options(sub)
    return found


PROGRAMS = {
    "kara up": options(up._parser()),
    "kara-worker": options(worker_cli._parser()),
    "kara": options(make_parser()),
}
_COMMAND = re.compile(r"(?<![\w/.-])(kara up|kara-worker|kara)((?: [^\n`|#]*)?)")


def commands() -> Iterator[tuple[Path, str, str]]:
    """Document, program and a flag that the document gives it, in code blocks and in `code`."""
    for path in DOCUMENTS:
        lines = re.sub(r"\\\n\s*", " ", text(path))
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", lines, re.DOTALL | re.MULTILINE)
        code = [block for kind, block in blocks if kind in ("", "bash", "sh")]
        code += re.findall(r"`([^`\n]+)`", lines)
        code += [line for line in lines.splitlines() if line.startswith("    ")]
        for piece in code:
            for program, rest in _COMMAND.findall(piece):
                for flag in re.findall(r"(?<=\s)--?[a-zA-Z][a-z-]*", rest):
                    yield path, program, flag


def test_every_flag_in_a_document_exists() -> None:
    found = [(path, program, flag) for path, program, flag in commands() if "error:" not in flag]
    assert len(found) >= 5, found
    unknown = [
        f"{path.name}: {program} {flag}"
        for path, program, flag in found
        if flag not in PROGRAMS[program] and flag != "--capcity"  # an example of a wrong one
    ]
    assert not unknown


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", text(place), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings]


PYTHON = [
    (path, number, code)
    for path in DOCUMENTS
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text(path), re.DOTALL))
]


@pytest.mark.parametrize(
    ("path", "number", "code"), PYTHON, ids=[f"{path.name}-{number}" for path, number, _ in PYTHON]
)
def test_python_examples_compile(path: Path, number: int, code: str) -> None:
    compile(code, f"{path}, example {number}", "exec")


def shape(path: Path) -> dict[str, Any]:
    """What a translation has in common with its original."""
    lines = text(path)
    code = re.findall(r"```(\w*)\n(.*?)```", lines, re.DOTALL)
    links = sorted(re.findall(r"\]\(([^)]+)\)", lines))
    return {
        "headings": [
            len(marks)
            for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", lines, flags=re.DOTALL), re.MULTILINE)
        ],
        "code": [(kind, re.sub(r"\s*#.*", "", block)) for kind, block in code],
        "commands": [re.sub(r"\s*#.*", "", line) for line in lines.splitlines() if line.startswith("    ")],
        "links": [link for link in links if not link.startswith("README")],
        "table rows": sum(line.startswith("|") for line in lines.splitlines()),
        "numbered": len(re.findall(r"^\d\. ", lines, re.MULTILINE)),
        "keys": sorted(set(re.findall(r"`([a-z]+_[a-z_]+|KARA_\w+)`", lines))),
    }


def test_the_chinese_readme_follows_the_english_one() -> None:
    english, chinese = shape(ROOT / "README.md"), shape(ROOT / "README.zh-CN.md")
    for what in english:
        assert english[what] == chinese[what], what
    assert "(README.zh-CN.md)" in text(ROOT / "README.md")
    assert "(README.md)" in text(ROOT / "README.zh-CN.md")
