from __future__ import annotations

import pytest

from kara_cache.ufs.address import AddressRule

NEVER = [
    "169.254.169.254",  # AWS, GCP, Azure, OpenStack
    "169.254.170.2",  # ECS
    "100.100.100.200",  # Alibaba Cloud
    "168.63.129.16",  # Azure
    "fe80::1%eth0",
    "fd00:ec2::254",
    "fd20:ce::254",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",  # NAT64
    "2002:a9fe:a9fe::1",  # 6to4
    "224.0.0.1",
    "ff02::1",
]
PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "::1",
    "::",
    "fc00::1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "255.255.255.255",
]
PUBLIC = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", NEVER)
def test_never(address: str) -> None:
    rule = AddressRule("home.test", allow_private=True)
    for host in ("home.test", "elsewhere.test"):
        assert "link-local and metadata addresses are refused" in rule.refusal(host, address)


@pytest.mark.parametrize("address", PRIVATE)
def test_private(address: str) -> None:
    rule = AddressRule("home.test")
    assert rule.allows("HOME.test", address)  # an operator named it
    assert "allow_private" in rule.refusal("elsewhere.test", address)
    assert AddressRule("home.test", allow_private=True).allows("elsewhere.test", address)
    rule.connected("home.test", address)  # a private home has private neighbours
    assert rule.allows("elsewhere.test", address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    rule = AddressRule("home.test")
    assert rule.allows("home.test", address)
    assert rule.allows("elsewhere.test", address)


def test_public_home_stays_public() -> None:
    rule = AddressRule("home.test")
    rule.connected("elsewhere.test", "10.0.0.1")
    rule.connected("home.test", "8.8.8.8")
    rule.connected("home.test", "10.0.0.1")
    assert "10.0.0.1" in rule.refusal("home.test", "10.0.0.1")
    assert rule.allows("home.test", "8.8.4.4")
