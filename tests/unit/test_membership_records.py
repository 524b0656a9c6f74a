from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import ConfigError, FormatError
from kara_cache.membership.base import MemberState, WorkerInfo
from kara_cache.membership.records import (
    MAX_VALUE_BYTES,
    LiveRecord,
    MemberRecord,
    as_passive,
    decode_live,
    decode_member,
    encode_live,
    encode_member,
    live_prefix,
    member_prefix,
)

ID = "f528764d624d3129b32c21fbca0cb8d6"
INFO = WorkerInfo(
    id=ID,
    host="10.0.0.7",
    port=29090,
    socket_path="/run/kara/x.sock",
    boot_id="b-1",
    capacity_bytes=1 << 40,
    state=MemberState.DRAINING,
    admin_port=29091,
    software="0.1.0",
)

infos = st.builds(
    WorkerInfo,
    id=st.text("0123456789abcdef", min_size=32, max_size=32),
    host=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255),
    port=st.integers(1, 65535),
    socket_path=st.text(),
    boot_id=st.text(),
    capacity_bytes=st.integers(0, 1 << 62),
    state=st.sampled_from([MemberState.ACTIVE, MemberState.DRAINING]),
    admin_port=st.integers(0, 65535),
    software=st.text(),
    alluxio_ports=st.tuples(*[st.integers(0, 65535)] * 3),
)


def test_the_value_is_what_alluxio_clients_read() -> None:
    """The bytes are a contract with clients that are not ours: a change here needs a reason."""
    written = json.loads(encode_live(LiveRecord(INFO, "i-1", "d-1", alluxio_port=28080)))

    assert written["Identity"] == {"version": 1, "identifier": ID}
    assert written["WorkerNetAddress"] == {
        "Host": "10.0.0.7",
        "HttpServerPort": 28080,
        "ContainerHost": "",
        "RpcPort": 29090,
        "DataPort": 29090,
        "SecureRpcPort": 0,
        "NettyDataPort": 29090,
        "WebPort": 29091,
        "DomainSocketPath": "",
    }
    assert (written["State"], written["GenerationNumber"]) == ("AUTHORIZED", -1)
    assert written["Kara"] == {
        "port": 29090,
        "socket_path": "/run/kara/x.sock",
        "boot_id": "b-1",
        "capacity_bytes": 1 << 40,
        "state": "draining",
        "admin_port": 29091,
        "software": "0.1.0",
        "instance": "i-1",
        "directory": "d-1",
        "passive_since": 0.0,
        "alluxio_ports": [0, 0, 0],
    }


@given(infos, st.text(), st.text(), st.integers(0, 65535))
def test_live_records_come_back(info: WorkerInfo, instance: str, directory: str, alluxio_port: int) -> None:
    record = LiveRecord(info, instance, directory, 0 if alluxio_port == info.port else alluxio_port)
    assert decode_live(info.id, encode_live(record)) == record


@given(infos, st.floats(0, 1e12))
def test_member_records_come_back(info: WorkerInfo, passive_since: float) -> None:
    record = MemberRecord(info, passive_since)
    decoded = decode_member(info.id, encode_member(record))
    assert decoded == record
    assert as_passive(decoded) == replace(info, state=MemberState.PASSIVE)


def test_fields_of_a_newer_worker_are_ignored() -> None:
    value = json.loads(encode_live(LiveRecord(INFO)))
    value["Kara"]["colour"] = "blue"
    value["Later"] = {"a": [1]}
    assert decode_live(ID, json.dumps(value).encode()).info == INFO


def changed(**kara: object) -> bytes:
    value = json.loads(encode_live(LiveRecord(INFO)))
    value["Kara"].update(kara)
    return json.dumps(value).encode()


def without(*path: str) -> bytes:
    value = json.loads(encode_live(LiveRecord(INFO)))
    *above, last = path
    inner = value
    for name in above:
        inner = inner[name]
    del inner[last]
    return json.dumps(value).encode()


def at_host(host: object) -> bytes:
    value = json.loads(encode_live(LiveRecord(INFO)))
    value["WorkerNetAddress"]["Host"] = host
    return json.dumps(value).encode()


GARBLED = {
    "empty": b"",
    "not JSON": b"leader=3",
    "JSON of another shape": b"[]",
    "cut": encode_live(LiveRecord(INFO))[:-1],
    "not UTF-8": b'{"Identity":{"version":1,"identifier":"\xff\xfe"}}',
    "deep": b"[" * 60000,
    "deep in an unknown field": b'{"x":' + b"[" * 60000,
    "too long": changed(software="x" * MAX_VALUE_BYTES),
    "a real Alluxio worker": without("Kara"),
    "no identity": without("Identity"),
    "no address": without("WorkerNetAddress"),
    "no port": without("Kara", "port"),
    "port out of range": changed(port=65536),
    "port 0": changed(port=0),
    "port as text": changed(port="80"),
    "negative capacity": changed(capacity_bytes=-1),
    "unknown state": changed(state="asleep"),
    "live and passive": changed(state="passive"),
    "empty host": at_host(""),
    "host that would split a request head": at_host("a\r\nX: y"),
    "host with a space": at_host("a b"),
    "host of another type": at_host(7),
}


@pytest.mark.parametrize("name", GARBLED)
def test_a_garbled_value_is_a_format_error_and_nothing_else(name: str) -> None:
    with pytest.raises(FormatError):
        decode_live(ID, GARBLED[name])


def test_a_value_under_another_workers_key_is_refused() -> None:
    with pytest.raises(FormatError, match="key is for"):
        decode_live("0" * 32, encode_live(LiveRecord(INFO)))


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_a_record_or_a_format_error(value: bytes) -> None:
    with pytest.raises(FormatError):
        decode_member(ID, value)


@pytest.mark.parametrize("wrong", ["", "short", ID.upper(), ID + "0", "host:80"])
def test_an_id_that_is_no_uuid_is_not_written(wrong: str) -> None:
    with pytest.raises(ConfigError, match="worker id"):
        encode_live(LiveRecord(replace(INFO, id=wrong)))


def test_prefixes_of_one_cluster_hold_no_other_cluster() -> None:
    assert live_prefix("ai") == "/ServiceDiscovery/ai/"
    assert member_prefix("ai") == "/KaraCache/ai/members/"


@pytest.mark.parametrize("wrong", ["", "a/b", " ", "a\nb", "x" * 300])
def test_a_cluster_name_that_would_leave_its_prefix_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="cluster_name"):
        live_prefix(wrong)
