"""The other workers, as one of them sees them: the same members, places and calls as a client's."""

from __future__ import annotations

from kara_cache.cluster import Cluster
from kara_cache.config import SYSTEM_CA, TlsConfig
from kara_cache.membership.base import Membership, MembershipView, WorkerInfo
from kara_cache.membership.configured import etcd_client
from kara_cache.membership.etcd_membership import EtcdMembership
from kara_cache.membership.static import StaticMembership
from kara_cache.suspects import Suspects
from kara_cache.transport.credentials import ClientTls, authorization
from kara_cache.transport.worker_link import Transport
from kara_worker.config import WorkerConfig

_SUSPECT_S = 0.5  # a client's is 5: a reader has somewhere else to go, a load waits for its worker
_CONNECTIONS = 32


class Alone:
    """A `Membership` of one worker that knows of no other."""

    def __init__(self, own: WorkerInfo) -> None:
        self._view = MembershipView((own,), 0, "static")

    def view(self) -> MembershipView:
        return self._view

    def close(self) -> None:
        pass


def peers_of(config: WorkerConfig, own: WorkerInfo) -> Cluster:
    """All members, this worker included. Thread-safe; the caller closes it and its membership.

    With etcd, who is there now; with `worker_hosts`, those; with neither, `own` alone. Whom we ask
    sees a token of our own making, good for everything, where a secret is set.
    """
    tls = ClientTls(client_tls(config))
    transport = Transport(
        connect_timeout_s=1.0,
        stall_timeout_s=3.0,
        connections=_CONNECTIONS,
        tls=tls if config.tls.cert else None,
        authorization=authorization(None, config.secret),
    )
    return Cluster(_membership(config, own), transport, Suspects(_SUSPECT_S))


def _membership(config: WorkerConfig, own: WorkerInfo) -> Membership:
    if config.etcd.hosts:
        return EtcdMembership(etcd_client(config.etcd), config.cluster_name, state_dir=None)
    if config.worker_hosts:
        return StaticMembership([str(endpoint) for endpoint in config.worker_endpoints])
    return Alone(own)


def client_tls(config: WorkerConfig) -> TlsConfig:
    """Our side of TLS towards other workers: we show the certificate that we serve with."""
    tls = config.tls
    if not tls.cert:
        return TlsConfig()
    return TlsConfig(ca=tls.peer_ca or tls.client_ca or SYSTEM_CA, cert=tls.cert, key=tls.key)
