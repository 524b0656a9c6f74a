"""Mounts that a private worker's own user adds by url; the worker serves nobody else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from kara_cache.mount import Mount
from kara_worker.mounted_stores import MountedStores


class PrivateMounts:
    """The same url with the same options is the same mount, so that processes share its pages."""

    def __init__(self, stores: MountedStores) -> None:
        self._stores = stores

    def add(self, url: str, options: Mapping[str, Any]) -> Mount:
        canonical = json.dumps([url, dict(options)], sort_keys=True, default=str).encode()
        name = "u-" + blake2b(canonical, digest_size=8).hexdigest()
        known = self._stores.mounts
        if (there := known.get(name)) is not None:
            return there
        mount = Mount(name=name, url=url, options=dict(options))
        self._stores.store(mount)  # a bad url or option is the caller's error, now
        self._stores.replace_mounts(known.with_mount(mount))
        return mount
