"""Options of stores as fsspec's own classes name them, in the words of our stores.

People bring the `storage_options` they have: `{"anon": True}` of s3fs, `{"key": ..., "secret": ...}` of
ossfs. Our own names pass as they are; what neither side knows is left for the store to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kara_cache.secret_ref import resolve_options

# How fsspec's files and listings are cached; nothing that says which bytes are read.
_OF_FSSPEC = frozenset(
    {
        "asynchronous",
        "auto_mkdir",
        "block_size",
        "cache_options",
        "cache_regions",
        "cache_type",
        "default_block_size",
        "default_cache_options",
        "default_cache_type",
        "default_fill_cache",
        "listings_expiry_time",
        "loop",
        "max_concurrency",
        "max_paths",
        "skip_instance_cache",
        "use_listings_cache",
        "version_aware",
    }
)

# Dotted names are keys of nested mappings.
_S3 = {  # s3fs 2026.9, S3FileSystem; client_kwargs are those of botocore's create_client
    "key": "access_key_id",
    "username": "access_key_id",
    "secret": "secret_access_key",
    "password": "secret_access_key",
    "token": "session_token",
    "anon": "anonymous",
    "client_kwargs.endpoint_url": "endpoint_url",
    "client_kwargs.region_name": "region",
    "client_kwargs.aws_access_key_id": "access_key_id",
    "client_kwargs.aws_secret_access_key": "secret_access_key",
    "client_kwargs.aws_session_token": "session_token",
    "client_kwargs.verify": "ca_file",
    "config_kwargs.s3.addressing_style": "addressing_style",
    "config_kwargs.connect_timeout": "connect_timeout_s",
    "config_kwargs.read_timeout": "read_timeout_s",
    "config_kwargs.max_pool_connections": "max_connections",
}
_OSS = {  # ossfs 2025.5, OSSFileSystem
    "key": "access_key_id",
    "secret": "access_key_secret",
    "token": "security_token",
}
_HTTP = {  # fsspec 2026.9, HTTPFileSystem; its other keywords are those of aiohttp's requests
    "client_kwargs.headers": "headers",
    "ssl": "verify",
}
_NAMES: Mapping[str, Mapping[str, str]] = {
    "s3": _S3,
    "oss": _OSS,
    "http": _HTTP,
    "https": _HTTP,
    "file": {},
}


def store_options(scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options for `kara_cache.ufs.open_store`; secrets by reference are read now, in this process.

    Stores that are reached through their fsspec class get its options as they are.
    """
    names = _NAMES.get(scheme)
    if names is None:
        return resolve_options(options)
    known = {names.get(key, key): value for key, value in _flat(options, names)}
    return resolve_options({key: value for key, value in known.items() if key not in _OF_FSSPEC})


def _flat(options: Mapping[str, Any], names: Mapping[str, str], front: str = "") -> list[tuple[str, Any]]:
    """Key and value, nested mappings taken apart where one of our names is inside."""
    found: list[tuple[str, Any]] = []
    for name, value in options.items():
        key = front + name
        if isinstance(value, Mapping) and any(known.startswith(f"{key}.") for known in names):
            found += _flat(value, names, f"{key}.")
        elif value is not None:
            found.append((key, value))
    return found
