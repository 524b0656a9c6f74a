"""What people configure alluxiofs with, in the words of this project's client."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fsspec.registry import known_implementations

from kara_cache.alluxio.ring import HTTP_PORT, VIRTUAL_NODES
from kara_cache.config import ClientConfig
from kara_cache.errors import ConfigError
from kara_cache.layered import keys
from kara_cache.quantity import parse_bytes

Dialect = Literal["kara", "alluxio"]
DIALECTS: tuple[Dialect, ...] = ("kara", "alluxio")
CLUSTER_NAME = "DefaultAlluxioCluster"  # of a real Alluxio cluster where nobody says otherwise

# Keywords of alluxiofs 1.0.x and 1.1.x that have a meaning here, and ours.
_MEANT = frozenset(
    {"dialect", "options", "worker_http_port", "hash_node_per_worker", "page_size", "concurrency"}
    | {"load_balance_domain"}
)
# Keywords of fsspec's own constructor.
_FSSPEC = frozenset({"asynchronous", "fo", "listings_expiry_time", "max_paths", "use_listings_cache"})

# Keywords of alluxiofs 1.0.x and 1.1.x without a meaning here, and why.
_NO_COPIES = "pages live with the workers, and are checked when they are read"
_READ_AHEAD = "read_ahead_bytes bounds what is read in advance"
WITHOUT_MEANING: Mapping[str, str] = {
    "etcd_refresh_workers_interval": "etcd tells of every change at once",
    "use_mem_cache": _NO_COPIES,
    "mem_map_capacity": _NO_COPIES,
    "use_memory_cache": _NO_COPIES,
    "memory_cache_size_mb": _NO_COPIES,
    "use_local_disk_cache": _NO_COPIES,
    "local_disk_cache_dir": _NO_COPIES,
    "local_cache_dir": _NO_COPIES,
    "local_cache_size_gb": _NO_COPIES,
    "local_cache_block_size_mb": _NO_COPIES,
    "mcap_enabled": _NO_COPIES,
    "mcap_prefetch_policy": _READ_AHEAD,
    "mcap_prefetch_ahead_blocks": _READ_AHEAD,
    "mcap_max_prefetch_blocks": _READ_AHEAD,
    "mcap_prefetch_concurrency": _READ_AHEAD,
    "read_buffer_size_mb": "reads go into the caller's buffer",
    "http_max_retries": "other workers and the store are tried until timeout_s",
    "http_timeouts": "use timeout_s, stall_timeout_s and connect_timeout_s",
    "test_options": "it is for alluxiofs's own tests",
}

# Alluxio's properties, in `options={...}`, by the keyword that they stand for.
_PROPERTIES: Mapping[str, str] = {
    "alluxio.cluster.name": "cluster_name",
    "alluxio.etcd.username": "etcd_username",
    "alluxio.etcd.password": "etcd_password",
    "alluxio.worker.http.server.port": "worker_http_port",
    "alluxio.worker.page.store.page.size": "page_size",
    "alluxio.user.consistent.hash.virtual.node.count.per.worker": "hash_node_per_worker",
    "alluxio.user.worker.selection.policy.consistent.hash.virtual.node.count.per.worker": (
        "hash_node_per_worker"
    ),
}


@dataclass(frozen=True, slots=True)
class AlluxioOptions:
    """What is left of the keywords once they are understood."""

    dialect: Dialect = "kara"
    virtual_nodes: int = VIRTUAL_NODES  # only a real Alluxio cluster is asked by its ring
    client: dict[str, Any] = field(default_factory=dict)  # keys of ClientConfig
    stores: dict[str, Any] = field(default_factory=dict)  # the caller's own options for stores, by scheme
    fsspec: dict[str, Any] = field(default_factory=dict)  # keywords of fsspec's own constructor


def read_options(given: Mapping[str, Any], *, stacklevel: int = 2) -> AlluxioOptions:
    """Raises ConfigError for what is wrong or unknown, naming what was probably meant.

    What alluxiofs knows and has no meaning here is one UserWarning for all of it.
    """
    pairs = dict(given)
    ignored = {name: WITHOUT_MEANING[name] for name in list(pairs) if name in WITHOUT_MEANING}
    for name in ignored:
        del pairs[name]
    properties, unknown_properties = _properties(pairs.pop("options", None))
    ignored |= dict.fromkeys(unknown_properties, "no property of a client of this cache")
    pairs = {**properties, **{name: value for name, value in pairs.items() if value is not None}}
    known = {*_MEANT, *_FSSPEC, *keys(ClientConfig)}
    client = {name: pairs.pop(name) for name in keys(ClientConfig) if name in pairs}
    fsspec = {name: pairs.pop(name) for name in list(pairs) if name in _FSSPEC}
    stores = {name: pairs.pop(name) for name in list(pairs) if _is_of_a_store(name, pairs[name])}
    _refuse_unknown(pairs, known)
    dialect = _dialect(pairs)
    virtual_nodes = _number(pairs, "hash_node_per_worker", VIRTUAL_NODES, least=1)
    _check_page_size(pairs.get("page_size"))
    client |= _addresses(pairs, client)
    if "concurrency" in pairs:
        client.setdefault("connections_per_worker", _number(pairs, "concurrency", 64, least=1))
    if dialect == "alluxio":
        client.setdefault("cluster_name", CLUSTER_NAME)
    if ignored:
        listed = "; ".join(f"{name} ({why})" for name, why in ignored.items())
        warnings.warn(f"without effect: {listed}", UserWarning, stacklevel=stacklevel + 1)
    return AlluxioOptions(dialect, virtual_nodes, client, stores, fsspec)


def target_of(fs: Any) -> tuple[str, dict[str, Any]]:
    """Scheme and options of the store behind a filesystem that the caller has made."""
    protocol = getattr(fs, "protocol", None)
    if isinstance(protocol, (tuple, list)) and protocol:
        protocol = protocol[0]
    if not isinstance(protocol, str):
        raise TypeError(f"fs: want a filesystem of fsspec, got {type(fs).__name__}")
    given = inspect.signature(type(fs).__init__).bind_partial(fs, *fs.storage_args, **fs.storage_options)
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(fs).__init__).parameters.items():
        if name in given.arguments and parameter.kind is parameter.VAR_KEYWORD:
            options |= given.arguments[name]
        elif name in given.arguments and given.arguments[name] is not fs:
            options[name] = given.arguments[name]
    return protocol, options


def _properties(properties: Any) -> tuple[dict[str, Any], list[str]]:
    """Keywords, and the names of properties that say nothing to a client of this cache."""
    if properties is None:
        return {}, []
    if not isinstance(properties, Mapping):
        raise ConfigError(f"options: want Alluxio's properties and their values, got {properties!r:.100}")
    found, unknown = {}, []
    for name, value in properties.items():
        if name in _PROPERTIES:
            found[_PROPERTIES[name]] = value
        elif str(name).startswith("alluxio."):
            unknown.append(str(name))  # an installation has hundreds, most of them for servers
        else:
            raise ConfigError(
                f"options: {name!r} is no property of Alluxio{_nearest(str(name), _PROPERTIES)}"
            )
    return found, unknown


def _is_of_a_store(name: str, value: Any) -> bool:
    return name in known_implementations and isinstance(value, Mapping)


def _refuse_unknown(left: Mapping[str, Any], known: set[str]) -> None:
    for name in left:
        if name not in _MEANT:
            raise ConfigError(f"{name!r}: unknown keyword{_nearest(name, known | set(WITHOUT_MEANING))}")


def _dialect(pairs: Mapping[str, Any]) -> Dialect:
    given = pairs.get("dialect", "kara")
    for dialect in DIALECTS:
        if given == dialect:
            return dialect
    raise ConfigError(f'dialect: want "kara" or "alluxio" (a real Alluxio cluster), got {given!r}')


def _addresses(pairs: Mapping[str, Any], client: Mapping[str, Any]) -> dict[str, Any]:
    """`worker_hosts` with a port each; a balanced domain is one of them."""
    port = _number(pairs, "worker_http_port", HTTP_PORT, least=1, most=65535)
    domain = pairs.get("load_balance_domain")
    if domain and client.get("worker_hosts"):
        raise ConfigError(
            "load_balance_domain and worker_hosts are both set: workers come from one place only"
        )
    hosts = domain or client.get("worker_hosts")
    if not hosts:
        return {}
    names = hosts.split(",") if isinstance(hosts, str) else [str(host) for host in hosts]
    listed = [name.strip() for name in names if name.strip()]
    return {"worker_hosts": tuple(f"{name}:{port}" if _needs_port(name) else name for name in listed)}


def _needs_port(host: str) -> bool:
    return host.endswith("]") or ":" not in host


def _number(pairs: Mapping[str, Any], name: str, default: int, *, least: int, most: int = 2**31 - 1) -> int:
    value = pairs.get(name, default)
    try:
        number = int(value) if not isinstance(value, bool) else -1
    except (TypeError, ValueError):
        number = -1
    if not least <= number <= most:
        raise ConfigError(f"{name}: want a number, {least} .. {most}, got {value!r}")
    return number


def _check_page_size(value: Any) -> None:
    """It changes nothing, because the workers know their own page size, but it should be a size."""
    if value is not None:
        try:
            parse_bytes(value)
        except ValueError as exc:
            raise ConfigError(f"page_size: {exc}") from exc


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, sorted(known), 1, 0.6)
    return f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
