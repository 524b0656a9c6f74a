"""What a worker refuses to start with, and that each refusal says what to set."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kara_cache.config import ClientConfig
from kara_cache.errors import ConfigError
from kara_cache.layered import keys, layered
from kara_cache.mount import Freshness, Mount
from kara_worker.cli import _parser
from kara_worker.config import ServerTls, WorkerConfig
from kara_worker.mount_settings import mounts_from_flags

GIB = 1 << 30
CONFIGURATION = Path(__file__).parents[2] / "docs" / "configuration.md"


class Disk(NamedTuple):
    f_blocks: int
    f_frsize: int = 4096


def disk_of(size: int) -> Any:  # in place of os.statvfs, which gives a type that nobody can construct
    return lambda path: Disk(size // 4096)


@pytest.fixture
def pages(tmp_path: Path) -> str:
    return str(tmp_path / "not" / "there" / "yet")


def load(
    pages: str, *, env: dict[str, str] | None = None, disk: int = 100 * GIB, **given: Any
) -> WorkerConfig:
    return WorkerConfig.load(
        env=env or {}, statvfs=disk_of(disk), **{"page_dirs": pages, "socket_dir": "/run/k", **given}
    )


def test_defaults_serve_this_machine_only(pages: str) -> None:
    config = load(pages)
    assert (config.listen.host, config.listen.port) == ("127.0.0.1", 28080)
    assert (config.admin.host, config.admin.port, config.admin.anonymous) == ("127.0.0.1", 28081, False)
    assert config.secrets() == ()
    assert config.server_tls() is None
    assert config.store.page_dirs == (pages,)
    assert not Path(pages).exists()


def test_file_environment_and_flags(tmp_path: Path, pages: str) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(
        f"""
        [worker]
        page_dirs = ["{pages}"]
        capacity_bytes = "20GiB"
        etcd_hosts = ["a", "b"]
        lease_ttl_s = "10s"
        [worker.admin]
        port = 0
        [client]
        timeout_s = 1
        [mounts.data]
        url = "oss://ep/b"
        freshness = "max_age=60s"
        ttl_s = "7d"
        replicas = 2
        read_only = true
        [mounts.data.options]
        access_key_secret = "env:S"
        [mounts.other]
        url = "/srv"
        """
    )
    env = {"KARA_CONFIG": str(file), "KARA_PORT": "0", "KARA_MOUNTS": "other=/srv/other more=s3://m"}
    config = WorkerConfig.load(env=env, statvfs=disk_of(100 * GIB), socket_dir="/run/k", eviction="lru")
    assert config.store.capacity_bytes == 20 * GIB
    assert config.etcd.hosts == ("a", "b")
    assert (config.listen.port, config.admin.port, config.life.lease_ttl_s) == (0, 0, 10)
    assert config.store.eviction == "lru"
    assert list(config.mounts) == [
        Mount("data", "oss://ep/b", {"access_key_secret": "env:S"}, Freshness(60), 604_800.0, 2, True),
        Mount("more", "s3://m"),
        Mount("other", "/srv/other"),
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"host": "0.0.0.0"}, r"'0.0.0.0'.*set secret \(KARA_SECRET=.*tls_client_ca.*127.0.0.1"),
        ({"host": "::"}, "set secret"),
        ({"host": ""}, "set secret"),
        ({"host": "node-7"}, "set secret"),
        ({"host": "0.0.0.0", "tls_cert": "c", "tls_key": "k"}, "set secret"),
        ({"host": "0.0.0.0", "secret": "short"}, "has 5 bytes, want at least 16"),
        ({"secret": "env:NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE"),
        ({"admin_host": "0.0.0.0"}, r"admin_host.*admin_anonymous = true \(KARA_ADMIN_ANONYMOUS=1\)"),
        ({"tls_client_ca": "x"}, "tls_cert"),
        ({"tls_cert": "x"}, "belong together"),
        ({"tls_cert": "/no/c", "tls_key": "/no/k"}, "tls_cert: no file '/no/c'"),
        ({"page_bytes": "100KiB"}, "power of two, 64 KiB .. 64 MiB, got 100 KiB"),
        ({"page_bytes": "32KiB"}, "power of two"),
        ({"page_bytes": "128MiB"}, "power of two"),
        ({"page_bytes": 0}, "power of two"),
        ({"capacity_bytes": "1MiB"}, "at least 4 pages"),
        ({"capacity_bytes": "101GiB"}, r"101 GiB of pages in .*yet, but that file system has 100 GiB"),
        ({"high_watermark": 0.5}, "watermark"),
        ({"low_watermark": 0}, "watermark"),
        ({"high_watermark": 1.1}, "watermark"),
        ({"page_dirs": ()}, "page_dirs: none set"),
        ({"page_dirs": "/"}, "page_dirs: '/' is the home"),
        ({"page_dirs": "~"}, "home directory or above"),
        ({"page_dirs": "/x/a,/x/a/b"}, "overlap"),
        ({"page_dirs": "/x/a,/x/b/../a"}, "overlap"),
        ({"page_dir": "/x"}, "did you mean 'page_dirs'"),
        ({"port": 70000}, "port: want 0 .. 65535"),
        ({"admin_port": -1}, "admin_port"),
        ({"workers": 0}, "workers"),
        ({"ufs_threads": 0}, "ufs_threads"),
        ({"lease_ttl_s": "100ms"}, "lease_ttl_s"),
        ({"idle_exit_s": 0}, "idle_exit_s"),
        ({"private": True, "etcd_hosts": "a"}, "private"),
        ({"private": True, "workers": 2}, "private"),
        ({"mounts": "a=s3://x a=s3://y"}, "given twice"),
        ({"socket_dir": "/" + "x" * 80}, "107"),
        ({"cluster_name": "a b"}, "cluster_name"),
    ],
)
def test_refused(pages: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(pages, **given)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[mounts]\na = 's3://b'", "[mounts.a] in"),
        ("mounts = 1", "want tables"),
        ("[mounts.a]\nreplicas = 1", "url is missing"),
        ("[mounts.a]\nurl = 's3://b'\nfreshnes = 'immutable'", "did you mean 'freshness'"),
        ("[mounts.a]\nurl = 's3://b'\nname = 'b'", "'name'"),
        ("[mounts.a]\nurl = 's3://b'\nfreshness = 'x'", "freshness ([mounts.a] in"),
        ("[mounts.'a/b']\nurl = 's3://b'", "mount name"),
        ("[mounts.a]\nurl = 's3://b'\n[mounts.a]\nurl = 's3://c'", "line"),
    ],
)
def test_bad_mounts_in_a_file(tmp_path: Path, pages: str, toml: str, words: str) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError, match=re.escape(words)):
        load(pages, file=file)


def test_authentication_lets_others_in(tmp_path: Path, pages: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("current-0123456789\nprevious-0123456789\n")
    config = load(pages, host="0.0.0.0", secret=f"file:{secret}", admin_host="0.0.0.0", admin_anonymous=True)
    assert config.secrets() == (b"current-0123456789", b"previous-0123456789")
    for name in ("c", "k", "ca"):
        (tmp_path / name).touch()
    tls = ServerTls(f"{tmp_path}/c", f"{tmp_path}/k", f"{tmp_path}/ca")
    assert load(pages, host="::", tls=tls).tls == tls


def test_a_private_worker_listens_nowhere_so_its_host_does_not_matter(pages: str) -> None:
    assert load(pages, private=True, host="0.0.0.0").private


@pytest.mark.parametrize(("disk", "capacity"), [(100 * GIB, 10 * GIB), (8 * GIB, 4 * GIB)])
def test_capacity_by_default(pages: str, disk: int, capacity: int) -> None:
    assert load(pages, disk=disk).store.capacity_bytes == capacity


def test_directories_on_one_disk_share_it(pages: str) -> None:
    with pytest.raises(ConfigError, match="80 GiB of pages"):
        load(f"{pages}/a,{pages}/b", capacity_bytes="80GiB", disk=79 * GIB)
    assert load(f"{pages}/a,{pages}/b", capacity_bytes="80GiB", disk=80 * GIB)


def test_the_real_disk_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="but that file system has"):
        WorkerConfig.load(env={}, page_dirs=str(tmp_path), socket_dir="/run/k", capacity_bytes="8000PiB")
    size = os.statvfs(tmp_path)
    config = WorkerConfig.load(env={}, page_dirs=str(tmp_path), socket_dir="/run/k")
    assert 0 < config.store.capacity_bytes <= size.f_blocks * size.f_frsize // 2


def test_the_socket_directory_by_default(pages: str) -> None:
    assert (
        load(pages, socket_dir=None, env={"XDG_RUNTIME_DIR": "/run/user/7"}).listen.socket_dir
        == "/run/user/7/kara"
    )


def test_relative_directories_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load("pages", socket_dir="s")
    assert config.store.page_dirs == (f"{tmp_path}/pages",)
    assert config.listen.socket_dir == f"{tmp_path}/s"


def test_split_gives_each_worker_its_own() -> None:
    whole = load("/x", workers=3, capacity_bytes="9GiB", admin_port=0)
    parts = whole.split()
    assert [part.store.page_dirs for part in parts] == [("/x/worker-0",), ("/x/worker-1",), ("/x/worker-2",)]
    assert [part.listen.port for part in parts] == [28080, 28082, 28084]
    assert {part.admin.port for part in parts} == {0}
    assert {part.store.capacity_bytes for part in parts} == {3 * GIB}
    assert {part.workers for part in parts} == {1}
    two = load("/x,/y", workers=2)
    assert [part.store.page_dirs for part in two.split()] == [("/x",), ("/y",)]
    four = load("/x,/y", workers=4).split()
    assert four[3].store.page_dirs == ("/x/worker-3", "/y/worker-3")
    ports = [port for part in four for port in (part.listen.port, part.admin.port)]
    assert len(set(ports)) == 8
    assert two.split()[0].split() == (two.split()[0],)


def test_mounts_from_flags() -> None:
    table = mounts_from_flags(
        ["a.b=s3://x/y=z", "c=/srv"], ["a.b.region=cn", "a.b.secret=env:S", "a.b.q=1=2"]
    )
    assert list(table) == [
        Mount("a.b", "s3://x/y=z", {"region": "cn", "secret": "env:S", "q": "1=2"}),
        Mount("c", "/srv"),
    ]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("a.secret=hunter2", "secret=env:NAME"),
        ("b.region=x", "NAME.KEY=VALUE"),
        ("region=x", "NAME.KEY=VALUE"),
        ("a.region", "NAME.KEY=VALUE"),
        ("a.=x", "NAME.KEY=VALUE"),
    ],
)
def test_bad_mount_options(option: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        mounts_from_flags(["a=s3://x"], [option])
    assert "hunter2" not in str(caught.value)


def test_client_and_worker_can_share_an_environment(pages: str) -> None:
    """A variable of one program must not look like a misspelt one of the other."""
    clients, workers = set(keys(ClientConfig)), set(keys(WorkerConfig))
    ClientConfig.load(env={f"KARA_{key.upper()}": "x" for key in workers - clients})
    load(pages, env={f"KARA_{key.upper()}": "x" for key in clients - workers})
    others = ("CONFIG", "RECORD", "TRACEBACK", "ETCD", "TESTS_WITHOUT", "PAGE_DIR")
    layered(ClientConfig, env={f"KARA_{name}": "x" for name in others})
    with pytest.raises(ConfigError, match="did you mean KARA_PAGE_DIRS"):
        load(pages, env={"KARA_PAGE_DIR": "/x"})


def test_groups_stay_small() -> None:
    assert len(WorkerConfig.__dataclass_fields__) <= 20
    assert len(keys(WorkerConfig)) == len(set(keys(WorkerConfig)))


def test_what_is_yes_or_no_is_a_switch() -> None:
    """`--trace` and `--no-trace`, not `--trace true`: for every such key of the documentation."""
    worker = CONFIGURATION.read_text().split("\n## Worker", 1)[1]
    keys_of = re.findall(r"^\| `(\w+)` \| yes or no \|.*?`(--[a-z-]+)`", worker, flags=re.M)
    assert {"guard", "trace", "private"} <= {key for key, _ in keys_of}
    for key, flag in keys_of:
        assert getattr(_parser().parse_args([flag]), key) is True
        assert getattr(_parser().parse_args([flag.replace("--", "--no-", 1)]), key) is False
