"""docs/objects.md and docs/cli.md, run as they stand there: Python, lines of a shell, the screen."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from services import require_module

from kara_cache import KaraStorage

require_module("pyte")
require_module("pyarrow")
from terminal import Terminal  # noqa: E402 - needs pyte

DOCS = Path(__file__).parents[2] / "docs"
KARA = [sys.executable, "-m", "kara_cache.cli.main"]
FIRST = [
    {"id": 0, "title": "缓存", "tags": ["cache", "训练"], "score": 0.5},
    {"id": 1, "title": "行存储", "tags": ["rows"], "score": 1.5},
    {"id": 2, "title": "数据集", "tags": ["data"], "score": 2.5},
]
MORE = [{"id": i, "title": f"第 {i} 页", "tags": ["row"], "score": i + 0.5} for i in range(3, 40)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the documents take for granted."""
    for name in [name for name in os.environ if name.startswith("KARA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "articles.jsonl").write_text('{"id": 1}\n{"id": 2}\n')
    (tmp_path / "checkpoint" / "weights").mkdir(parents=True)
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    (tmp_path / "checkpoint" / "weights" / "part-0.bin").write_bytes(os.urandom(1 << 20))
    with closing(KaraStorage("file://datasets")) as storage:
        for version, rows in (("1", FIRST), ("2", FIRST + MORE)):
            with storage.open("web", "pages", "w", version) as dataset:
                for row in rows:
                    dataset.write(row)
    return tmp_path


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / document).read_text(), re.DOTALL | re.MULTILINE)


def test_python(place: Path) -> None:
    names: dict[str, Any] = {}
    found = blocks("objects.md", "python")
    assert len(found) == 4
    for number, code in enumerate(found):
        exec(compile(code, f"objects.md, block {number}", "exec"), names)
    names["storage"].close()
    assert (place / "restored" / "weights" / "part-0.bin").stat().st_size == 1 << 20


def lines_of_a_shell() -> list[tuple[str, str]]:
    """Each command with what it prints."""
    found = []
    for block in blocks("cli.md", "console"):
        for line in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = line.partition("\n")
            found.append((command, output))
    return found


def test_lines_of_a_shell(place: Path) -> None:
    found = lines_of_a_shell()
    assert len(found) == 14
    for command, output in found:
        assert command.startswith("kara ")
        line = command.replace("kara", shlex.join(KARA), 1)
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=100, check=False)
        said = done.stdout.replace(f"file://{place}/", "file:///.../")
        assert (done.returncode, said, done.stderr) == (0, output, ""), command


@pytest.mark.usefixtures("place")
def test_the_screen() -> None:
    (screen,) = blocks("cli.md", "text")
    (command,) = re.findall(r"^    kara (row .* view .*)$", (DOCS / "cli.md").read_text(), re.MULTILINE)
    lines = screen.splitlines()
    with Terminal([*KARA, *command.split()], lines=len(lines), columns=80) as terminal:
        assert terminal.wait_for("[Q]uit") == [line.rstrip() for line in lines]
        terminal.send("q")
        assert terminal.wait_for_end() == 0
