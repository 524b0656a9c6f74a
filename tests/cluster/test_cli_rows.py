"""Every action of `kara row`: on a terminal, piped, and when it cannot be done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from services import require_module

from kara_cache import KaraStorage
from kara_cache.cli import row_interchange
from kara_cache.cli.exit_code import ExitCode, UsageError
from kara_cache.cli.main import main
from kara_cache.serialization import NoSerializer
from kara_worker.testing.oss_server import OssServer
from kara_worker.testing.rude_http_server import RudeHttpServer

require_module("pyte")
from terminal import Terminal  # noqa: E402 - needs pyte

pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
ROWS = [{"id": i, "title": f"标题 {i}", "words": ["a", "b"]} for i in range(40)]
ACTIONS = ("view", "ls", "info", "head", "verify", "import", "export")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    with closing(KaraStorage(f"file://{path}/db")) as storage:
        for version, rows in (("1", ROWS[:7]), ("2", ROWS)):
            with storage.open("web", "pages", "w", version) as dataset:
                for row in rows:
                    dataset.write(row)
        with storage.open("other/deep", "bytes", "w", "0", NoSerializer()) as dataset:
            for raw in (b"\xff\xfe", b"plain text", b'{"a": [1, 2]}', b""):
                dataset.write(raw)
    return path


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    words: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def documents(self) -> list[Any]:
        return [json.loads(line) for line in self.lines]


Kara = Callable[..., Said]


@pytest.fixture
def kara(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kara:
    for name in [name for name in os.environ if name.startswith("KARA_")]:
        monkeypatch.delenv(name)

    def run(*arguments: object) -> Said:
        try:
            code = int(main([str(argument) for argument in arguments]))
        except SystemExit as exc:  # of argparse
            code = int(exc.code or 0)
        return Said(code, *capfd.readouterr())

    return run


@pytest.fixture
def url(directory: Path) -> str:
    return f"file://{directory}/db"


def test_ls(kara: Kara, url: str) -> None:
    assert kara("row", url, "ls").lines == ["other/deep/bytes", "web/pages"]
    assert kara("row", url, "ls", "other").lines == ["other/deep/bytes"]
    assert kara("row", url, "ls", "web", "--json").documents == [{"name": "web/pages"}]
    assert kara("row", url, "ls", "web", "pages").lines == ["1", "2 (latest)"]
    assert kara("row", url, "ls", "web", "pages", "--json").documents == [
        {"latest": "2", "versions": ["1", "2"]}
    ]


def test_info(kara: Kara, url: str) -> None:
    said = dict(line.split(maxsplit=1) for line in kara("row", url, "info", "web", "pages").lines)
    assert (said["rows"], said["version"], said["versions"]) == ("40", "2 (latest)", "1, 2")
    (document,) = kara("row", url, "info", "web", "pages", "-v", 1, "--json").documents
    assert (document["rows"], document["version"], document["latest"]) == (7, "1", "2")
    assert document["bytes"] == sum(
        len(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()) for row in ROWS[:7]
    )


def test_head(kara: Kara, url: str) -> None:
    assert kara("row", url, "head", "web", "pages").documents == ROWS[:10]
    assert kara("row", url, "head", "web", "pages", "-n", 2, "--begin", 39).documents == ROWS[39:]
    assert kara("row", url, "head", "web", "pages", "-n", 99, "-v", 1).documents == ROWS[:7]
    assert kara("row", url, "head", "web", "pages", "-n", 0).lines == []
    assert kara("row", url, "head", "other/deep", "bytes").documents == [
        {"base64": "//4="},
        "plain text",
        {"a": [1, 2]},
        "",
    ]


def test_view_that_is_piped(kara: Kara, url: str) -> None:
    assert kara("row", url, "view", "web", "pages").documents == ROWS
    assert kara("row", url, "view", "web", "pages", "-v", 1, "--begin", 5).documents == ROWS[5:7]
    assert kara("row", url, "view", "web", "pages", "--begin", 40).lines == []


def test_verify(kara: Kara, url: str, directory: Path) -> None:
    assert kara("row", url, "verify", "web", "pages").lines == [
        "version 2: 40 rows, 40 of them with a checksum, all right"
    ]
    data = directory / "db" / "row" / "web" / "pages" / "1" / "data" / "0.blk"
    right = data.read_bytes()
    data.write_bytes(right[:80] + b"X" + right[81:])
    try:
        said = kara("row", url, "verify", "web", "pages", "-v", 1)
        assert said.code == ExitCode.FAILED
        assert len(said.lines) == 1
        assert "row 1" in said.lines[0]
        assert "1 of 7 rows are damaged" in said.words
        (document,) = kara("row", url, "verify", "web", "pages", "-v", 1, "--json").documents
        assert [problem["row"] for problem in document["damaged"]] == [1]
    finally:
        data.write_bytes(right)


def test_over_http(kara: Kara, directory: Path) -> None:
    with RudeHttpServer() as server:
        for path in (directory / "db").rglob("*"):
            if path.is_file():
                server.put(f"test/{path.relative_to(directory / 'db').as_posix()}", path.read_bytes())
        place = f"{server.url}/test"
        assert kara("row", place, "view", "web", "pages").documents == ROWS
        assert kara("row", place, "ls").lines == ["other/deep/bytes", "web/pages"]


NOWHERE = "127.0.0.1:9"
FAILURES: dict[str, tuple[str, ExitCode, str]] = {
    "no action": ("URL", ExitCode.USAGE, "required: ACTION"),
    "unknown action": ("URL dir", ExitCode.USAGE, "invalid choice: 'dir'"),
    "no key": ("URL view web", ExitCode.USAGE, "required: KEY"),
    "negative row": ("URL head web pages --begin -1", ExitCode.USAGE, "0 or more"),
    "row past the end": ("URL head web pages --begin 41", ExitCode.USAGE, "there are 40 rows"),
    "no such data set": ("URL view web nothing", ExitCode.NOT_FOUND, "web/nothing: there is no such"),
    "no such version": ("URL head web pages -v 9", ExitCode.NOT_FOUND, "no version 9, there are 1, 2"),
    "no such place": ("file:///nowhere ls", ExitCode.NOT_FOUND, "no data set of kind row"),
    "no such namespace": ("URL ls nothing", ExitCode.NOT_FOUND, "namespace nothing"),
    "unknown scheme": ("gopher://x/y ls", ExitCode.USAGE, "Unknown scheme `gopher`"),
    "keys for a file": ("URL ls --app-key x", ExitCode.CONFIG, "file:// has no keys"),
    "unknown option": ("URL ls --store-option file.x=1", ExitCode.CONFIG, "x"),
    "literal secret": ("s3://b ls --store-option s3.secret=x", ExitCode.CONFIG, "env:NAME"),
    "namespace that leads out": ("URL head .. x", ExitCode.FAILED, "not allowed"),
    "nobody there": (
        f"http://{NOWHERE}/x info a b --store-option http.retries=0",
        ExitCode.UNAVAILABLE,
        "refused",
    ),
    "nobody there, through the cache": (
        f"kara::http://{NOWHERE}/x info a b --worker-hosts {NOWHERE}",
        ExitCode.UNAVAILABLE,
        "refused",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures(kara: Kara, url: str, case: str) -> None:
    arguments, code, words = FAILURES[case]
    said = kara("row", *arguments.replace("URL", url).split())
    assert (said.code, said.out) == (code, ""), said.words
    assert words in said.words
    assert "Traceback" not in said.words


@pytest.mark.parametrize("action", ACTIONS)
def test_help_ends_in_examples(kara: Kara, action: str) -> None:
    examples = kara("row", "URL", action, "--help").out.partition("\nexamples:\n")[2].splitlines()
    assert examples
    assert all(line.startswith("  kara row ") and f" {action}" in line for line in examples)


def test_the_published_spelling(kara: Kara, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`row <url> view <ns> <key> [-v] [--app-key] [--app-secret] [--begin]`, and keys that ps hides."""
    require_module("oss2")
    with OssServer(buckets=["bucket"]) as server:
        for path in (directory / "db").rglob("*"):
            if path.is_file():
                name = path.relative_to(directory / "db").as_posix()
                server.objects.put("bucket", f"pre/{name}", path.read_bytes())
        keys = server.credentials
        plain = ["row", f"oss://{server.host}/bucket/pre", "view", "web", "pages", "-v", "1", "--begin", "6"]
        plain += ["--store-option", "oss.use_ssl=false"]
        said = kara(*plain, "--app-key", keys.key_id, "--app-secret", keys.key_secret)
        assert said.documents == ROWS[6:7]
        assert "ps" in said.words
        assert keys.key_secret not in said.words
        (directory / "secret").write_text(keys.key_secret + "\n")
        monkeypatch.setenv("MY_KEY", keys.key_id)
        said = kara(*plain, "--app-key", "env:MY_KEY", "--app-secret", f"file:{directory}/secret")
        assert (said.documents, said.words) == (ROWS[6:7], "")
        assert kara(*plain).code == ExitCode.DENIED
        monkeypatch.setenv("KARA_APP_KEY", keys.key_id)
        monkeypatch.setenv("KARA_APP_SECRET", keys.key_secret)
        assert kara(*plain).documents == ROWS[6:7]
        assert kara(*plain, "--app-secret", "env:MY_KEY").code == ExitCode.DENIED


# -- the viewer, on a terminal


@pytest.fixture
def viewer(url: str) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str, **options: Any) -> Terminal:
        command = [sys.executable, "-m", "kara_cache.cli.main", "row", url, "view", *arguments]
        opened.append(Terminal(command, **options).__enter__())
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.__exit__(None, None, None)


Viewer = Callable[..., Terminal]
UP, DOWN, RIGHT = "\x1b[A", "\x1b[B", "\x1b[C"


def test_viewer(viewer: Viewer) -> None:
    terminal = viewer("web", "pages", "--begin", "3")
    lines = terminal.wait_for("[Q]uit")
    assert lines[0].startswith(" Index: 3  of 40  line 1 of 8")
    assert lines[1:4] == ["{", '    "id": 3,', '    "title": "标题 3",']
    terminal.send("n")
    terminal.wait_for(lambda lines: "Index: 4 " in lines[0] and lines[2] == '    "id": 4,')
    terminal.send("g12\n")
    terminal.wait_for("Index: 12 ")
    terminal.send("/标题 30\n")
    terminal.wait_for("Index: 30 ")
    terminal.send(RIGHT)
    terminal.wait_for(lambda lines: lines[1] == "")
    terminal.send("t")
    terminal.wait_for('    "id": 30,')
    terminal.send("g39\nn")
    terminal.wait_for("this is the last row")
    terminal.send("q")
    assert terminal.wait_for_end() == 0


def test_viewer_on_terminals_of_any_size(viewer: Viewer) -> None:
    terminal = viewer("web", "pages", lines=6, columns=30)
    assert terminal.wait_for("N P T B G / Q")[1:5] == [
        "{",
        '    "id": 0,',
        '    "title": "标题 0",',
        '    "words": [',
    ]
    terminal.send("b")
    terminal.wait_for("line 5 of 8")
    for lines, columns in ((1, 1), (2, 3), (50, 2), (24, 80)):
        terminal.resize(lines, columns)
    terminal.wait_for("[Q]uit")
    terminal.send("n")
    terminal.wait_for("Index: 1 ")
    terminal.send("\x1b")
    assert terminal.wait_for_end() == 0


def test_viewer_of_bytes(viewer: Viewer) -> None:
    terminal = viewer("other/deep", "bytes")
    terminal.wait_for("00000000  ff fe")
    terminal.send("n")
    terminal.wait_for("plain text")
    terminal.send("n")
    terminal.wait_for('"a": [')
    terminal.send("n")
    terminal.wait_for("Index: 3 ")
    terminal.send("q")
    assert terminal.wait_for_end() == 0


def test_viewer_without_utf8(viewer: Viewer) -> None:
    terminal = viewer("web", "pages", LC_ALL="POSIX", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert '"title": "?' in "".join(terminal.wait_for("[Q]uit"))
    terminal.send("q")
    assert terminal.wait_for_end() == 0


def test_a_terminal_that_cannot_do_it_gets_lines(viewer: Viewer) -> None:
    terminal = viewer("web", "pages", "--begin", "38", TERM="no-such-terminal", columns=200)
    assert terminal.wait_for_end() == 0
    assert "no viewer on this terminal" in terminal.display[0]
    assert '"id":39' in terminal.display[2]


def test_ctrl_c(viewer: Viewer) -> None:
    terminal = viewer("web", "pages")
    terminal.wait_for("[Q]uit")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait_for_end() == ExitCode.INTERRUPTED
    assert not any("Traceback" in line for line in terminal.display)


def test_a_reader_that_has_enough(url: str) -> None:
    command = f"{sys.executable} -m kara_cache.cli.main row {url} view web pages | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, ROWS[0], b"")


# -- other formats


def test_json_lines_in_and_out(kara: Kara, tmp_path: Path) -> None:
    place = f"file://{tmp_path}/db"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(lines)
    assert kara("row", place, "import", "web", "pages", tmp_path / "rows.jsonl").out == "0\n"
    (document,) = kara("row", place, "import", "web", "pages", tmp_path / "rows.jsonl", "--json").documents
    assert document == {"version": "1", "rows": 40}
    assert kara("row", place, "view", "web", "pages").documents == ROWS
    assert kara("row", place, "export", "web", "pages", tmp_path / "out.jsonl").out == "40\n"
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ROWS
    said = kara("row", place, "export", "web", "pages", tmp_path / "out.jsonl")
    assert (said.code, said.out) == (ExitCode.FAILED, "")
    assert "is there already" in said.words


def test_images_in_and_out(kara: Kara, tmp_path: Path) -> None:
    place = f"file://{tmp_path}/db"
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        (tmp_path / "images" / label / "0.png").write_bytes(b"\x89PNG" + label.encode())
    assert (
        kara("row", place, "import", "vision", "pets", tmp_path / "images", "--kind", "images").out == "0\n"
    )
    rows = kara("row", place, "head", "vision", "pets", "--serialization", "msgpack").documents
    assert [row["label"] for row in rows] == ["cat", "dog"]
    assert kara("row", place, "export", "vision", "pets", tmp_path / "out", "--kind", "images").out == "2\n"
    assert (tmp_path / "out" / "dog" / "0.png").read_bytes() == b"\x89PNGdog"
    said = kara("row", place, "export", "vision", "pets", tmp_path / "pets.tar")
    assert (said.code, said.out) == (ExitCode.FAILED, "")
    assert "00000000.path: a file in a tar is bytes, got str" in said.words
    said = kara("row", place, "export", "vision", "pets", tmp_path / "pets.jsonl")
    assert (said.code, said.out) == (ExitCode.FAILED, "")
    assert "were taken for json, --serialization says otherwise" in said.words
    assert not (tmp_path / "pets.tar").exists()
    assert not (tmp_path / "pets.jsonl").exists()


def test_appending(kara: Kara, tmp_path: Path) -> None:
    place = f"file://{tmp_path}/db"
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    imports = ("row", place, "import", "web", "pages", tmp_path / "a.jsonl")
    assert kara(*imports, "-v", "x").out == "x\n"
    said = kara(*imports, "-v", "x")
    assert (said.code, said.out) == (ExitCode.FAILED, "")
    assert "--append adds rows" in said.words
    assert kara(*imports, "-v", "latest", "--append").out == "x\n"
    assert kara("row", place, "view", "web", "pages").documents == [{"a": 1}] * 2
    assert kara(*imports, "--append").code == ExitCode.USAGE


@pytest.mark.parametrize("kind", ["file", "oss"])
def test_an_import_that_fails_leaves_no_version(
    kara: Kara, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n' * 5 + "{broken\n")
    with OssServer(buckets=["bucket"]) as server:
        place, more = f"file://{tmp_path}/db", []
        if kind == "oss":
            place, more = f"oss://{server.host}/bucket", ["--store-option", "oss.use_ssl=false"]
            monkeypatch.setenv("KARA_APP_KEY", server.credentials.key_id)
            monkeypatch.setenv("KARA_APP_SECRET", server.credentials.key_secret)
        imports = ("row", place, "import", "web", "pages")
        said = kara(*imports, tmp_path / "bad.jsonl", *more)
        assert (said.code, said.out) == (ExitCode.FAILED, "")
        assert "bad.jsonl" in said.words
        assert kara("row", place, "ls", "web", "pages", *more).code == ExitCode.NOT_FOUND
        assert kara(*imports, tmp_path / "good.jsonl", *more).out == "0\n"
        assert kara(*imports, tmp_path / "bad.jsonl", *more).code == ExitCode.FAILED
        assert kara("row", place, "ls", "web", "pages", *more).lines == ["0 (latest)"]
        assert kara(*imports, tmp_path / "good.jsonl", *more).out == "1\n"
        assert kara("row", place, "view", "web", "pages", *more).documents == [{"a": 1}]


GUESSES = {
    "x.jsonl": "jsonl",
    "x.PARQUET": "parquet",
    "x.tar": "webdataset",
    "tars/": None,
    "env/": "lmdb",
    "parts/": "parquet",
    "mixed/": None,
    "x.csv": None,
}


@pytest.mark.parametrize("name", GUESSES)
def test_what_a_name_tells(tmp_path: Path, name: str) -> None:
    for path in (
        "env/data.mdb",
        "parts/0.parquet",
        "parts/_SUCCESS",
        "mixed/a.tar",
        "mixed/b.parquet",
        "tars/x",
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    wanted = GUESSES[name]
    if wanted is not None:
        assert row_interchange._kind(str(tmp_path / name), None) == wanted
        return
    with pytest.raises(UsageError, match="--kind"):
        row_interchange._kind(str(tmp_path / name), None)
    assert row_interchange._kind(str(tmp_path / name), "images") == "images"
