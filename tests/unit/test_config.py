from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from kara_cache.config import ClientConfig, EtcdConfig, TlsConfig, runtime_dir
from kara_cache.endpoint import Endpoint
from kara_cache.errors import ConfigError
from kara_cache.layered import keys


def test_what_the_names_promise() -> None:
    config = ClientConfig.load(
        env={},
        cluster_name="train",
        etcd_hosts="h1,h2:2380",
        etcd_port=2379,
        etcd_username="u",
        etcd_password="env:P",
        etcd_tls_ca="/ca.pem",
        timeout_s="2m",
        read_ahead_bytes="8MiB",
    )
    assert config.etcd.endpoints == (Endpoint("h1", 2379), Endpoint("h2", 2380))
    assert config.etcd.tls == TlsConfig(ca="/ca.pem")
    assert config.etcd.tls.enabled
    assert not config.tls.enabled
    assert (config.timeout_s, config.read_ahead_bytes) == (120.0, 8 << 20)
    assert len(ClientConfig.__dataclass_fields__) <= 20


def test_hosts_as_a_list_too() -> None:
    assert ClientConfig.load(env={}, etcd_hosts=["h1", "h2"]).etcd.hosts == ("h1", "h2")
    static = ClientConfig.load(env={}, worker_hosts="a,b:1")
    assert static.worker_endpoints == (Endpoint("a", 28080), Endpoint("b", 1))


def test_file_named_by_argument_or_environment(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text('[client]\ncluster_name = "one"\n[worker]\nport = 1\n[mounts.a]\nurl = "s3://a"\n')
    two.write_text('[client]\ncluster_name = "two"\n')
    assert ClientConfig.load(env={"KARA_CONFIG": str(one)}).cluster_name == "one"
    assert ClientConfig.load(env={"KARA_CONFIG": str(one)}, file=two).cluster_name == "two"
    assert ClientConfig.load(env={"KARA_CONFIG": str(one), "KARA_CLUSTER_NAME": "env"}).cluster_name == "env"


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("KARA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KARA_SUSPECT_S", "7")
    assert ClientConfig.load().suspect_s == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"etcd_host": "a"}, "did you mean 'etcd_hosts'"),
        ({"etcd_hosts": "http://a:2379"}, "not a URL"),
        ({"etcd_hosts": "a:b"}, "port"),
        ({"etcd_port": 0}, "etcd_port"),
        ({"etcd_username": "u"}, "belong together"),
        ({"worker_hosts": "a:0"}, "port"),
        ({"worker_hosts": "a", "etcd_hosts": "b"}, "both set"),
        ({"token": "env:A", "secret": "env:B"}, "both set"),
        ({"tls_cert": "c"}, "belong together"),
        ({"tls_cert": "c", "tls_key": "k"}, "without ca"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"connections_per_worker": 0}, "connections_per_worker"),
        ({"cluster_name": "a/b"}, "cluster_name"),
        ({"cluster_name": ""}, "cluster_name"),
    ],
)
def test_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ClientConfig.load(env={}, **options)


def test_it_travels_to_other_processes_and_shows_no_secret() -> None:
    config = ClientConfig.load(env={}, secret="hunter2hunter2hunter2")
    assert "hunter2" not in repr(config)
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(pickle.loads(pickle.dumps(config)))


def test_state_path_is_the_users() -> None:
    assert ClientConfig().state_path == Path.home() / ".cache/kara"


def test_runtime_dir() -> None:
    assert runtime_dir({"XDG_RUNTIME_DIR": "/run/user/5"}, 5) == Path("/run/user/5/kara")
    assert runtime_dir({}, 5).name == "kara-5"
    assert runtime_dir({}, 5) != runtime_dir({}, 6)


def test_the_keys_are_the_documented_ones() -> None:
    assert keys(EtcdConfig) == (
        "hosts",
        "port",
        "username",
        "password",
        "tls_ca",
        "tls_cert",
        "tls_key",
        "tls_verify_hostname",
    )
