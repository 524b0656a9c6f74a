"""The wheel in an empty environment: the README's first three lines, with nothing running."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from main_job import content, data_gets, store_of
from private_home import private_home, three_lines

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "oss2",
    "boto3",
    "botocore",
    "numpy",
    "pandas",
    "pyarrow",
    "aiohttp",
    "s3fs",
    "lmdb",
    "uvloop",
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment that holds the wheel and its base dependencies."""
    directory = tmp_path_factory.mktemp("install")
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation"),
        *("--outdir", str(directory), str(ROOT)),
        cwd=directory,
    )
    (wheel,) = directory.glob("*.whl")
    run(sys.executable, "-m", "venv", str(directory / "venv"), cwd=directory)
    interpreter = str(directory / "venv" / "bin" / "python")
    run(
        *(interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)),
        cwd=directory,
    )
    return interpreter


def test_three_lines_with_nothing_running(python: str, tmp_path: Path) -> None:
    data = content("part-0001.parquet", (3 << 20) + 17)
    head = f"{1 << 20} {hashlib.sha256(data[: 1 << 20]).hexdigest()}\n"
    with store_of(**{"part-0001.parquet": data}) as store, private_home(tmp_path) as home:
        code = three_lines(f"{store.url}/d/part-0001.parquet")
        assert home.run(code, python=python) == head
        assert data_gets(store) == 1
        first = home.worker["pid"]
        assert home.run(code, python=python) == head
        assert data_gets(store) == 1
        assert home.worker["pid"] == first
        home.end_worker()
    assert [path.name for path in tmp_path.iterdir()] == [".cache"]


def test_the_base_install_is_light(python: str, tmp_path: Path) -> None:
    find = "import sys\nfrom importlib.util import find_spec\nprint(*filter(find_spec, sys.argv[1:]))"
    assert run(python, "-c", find, *HEAVY, cwd=tmp_path).split() == []
    for module in ("kara_cache", "kara_cache.filesystem", "kara_worker.cli", "kara_cache.cli.main"):
        run(python, "-W", "error", "-c", f"import {module}", cwd=tmp_path)
    loaded = run(python, "-c", "import kara_cache, sys; print(*sys.modules)", cwd=tmp_path).split()
    ours = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert not ours & {*HEAVY, "requests", "urllib3", "fsspec", "tqdm", "kara_worker"}, ours


def test_the_programs_are_there(python: str, tmp_path: Path) -> None:
    for program in ("kara", "kara-worker"):
        said = run(str(Path(python).with_name(program)), "--version", cwd=tmp_path)
        assert said.startswith("kara_cache ")
