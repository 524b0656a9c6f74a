"""Which membership a configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kara_cache.config import SYSTEM_CA, ClientConfig, EtcdConfig, TlsConfig
from kara_cache.membership.base import Membership
from kara_cache.membership.static import StaticMembership

if TYPE_CHECKING:
    from kara_cache.membership.etcd import EtcdClient, TlsFiles


def membership_of(config: ClientConfig) -> Membership:
    """etcd's if there are hosts, else the fixed list, else this user's private worker.

    Each is imported where it is used: a client with a fixed list loads no etcd client.
    """
    if config.etcd.hosts:
        from kara_cache.membership.etcd_membership import EtcdMembership

        client = etcd_client(config.etcd, connect_timeout_s=config.connect_timeout_s)
        return EtcdMembership(client, config.cluster_name, state_dir=config.state_path)
    if config.worker_hosts:
        return StaticMembership([str(endpoint) for endpoint in config.worker_endpoints])
    from kara_cache.local_worker import LocalMembership

    return LocalMembership()


def etcd_client(config: EtcdConfig, *, connect_timeout_s: float = 2.0) -> EtcdClient:
    """A client for the configured etcd; connects when it is first used."""
    from kara_cache.membership.etcd import EtcdClient

    tls = config.tls
    files = _files(tls) if tls.enabled else None
    return EtcdClient(
        [f"{'https' if files else 'http'}://{endpoint}" for endpoint in config.endpoints],
        username=config.username,
        password=config.password.reveal if config.password is not None else "",  # read again after a rotation
        tls=files,
        connect_timeout_s=connect_timeout_s,
    )


def _files(tls: TlsConfig) -> TlsFiles:
    from kara_cache.membership.etcd import TlsFiles

    return TlsFiles("" if tls.ca == SYSTEM_CA else tls.ca, tls.cert, tls.key, tls.verify_hostname)
