"""Views of pages of this host in the processes of a DataLoader, with a client and a view of their parent."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
from scripted_worker import WAIT_S, FixedMembership, ScriptedWorker
from services import require_module

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig

pytestmark = [
    pytest.mark.clients,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
torch = require_module("torch")

PAGE = 64 << 10
CONTENT = os.urandom(12 * PAGE)
PATH = "/m/f"
LAST = 11


class Pages(torch.utils.data.Dataset):  # type: ignore[misc, name-defined]
    """For each page what a view of it shows, what the parent's view does, and whether both are mapped."""

    def __init__(self, client: CacheClient) -> None:
        self.client = client
        self.file = client.info(PATH)
        client.read(self.file, 0, 10)  # now it knows that the worker is on this host
        self.seen = client.view(self.file, 0, PAGE)

    def __len__(self) -> int:
        return LAST + 1

    def __getitem__(self, index: int) -> tuple[bytes, bytes, bool]:
        view = self.client.view(self.file, index * PAGE + index, 100)
        if index >= LAST - 1:  # each of the two processes comes to one of them, and it is its last
            self.client.close()
        there = isinstance(view.obj, mmap.mmap) and isinstance(self.seen.obj, mmap.mmap)
        return bytes(view), bytes(self.seen[index : index + 100]), there


def test_views_in_processes_of_a_loader_that_close_the_client(tmp_path: Path) -> None:
    with (
        ScriptedWorker({PATH: CONTENT}, unix_dir=tmp_path) as worker,
        CacheClient(
            ClientConfig(stall_timeout_s=WAIT_S), membership=FixedMembership(worker.member())
        ) as client,
    ):
        pages = Pages(client)
        for _ in range(2):
            loader = torch.utils.data.DataLoader(
                pages, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=WAIT_S
            )
            for index, (of_page, of_parent, mapped) in enumerate(loader):
                assert of_page == CONTENT[index * PAGE + index :][:100]
                assert of_parent == CONTENT[index : index + 100]
                assert mapped
            assert pages.seen == CONTENT[:PAGE]
            assert client.view(pages.file, 0, 10).obj is pages.seen.obj
            assert client.view(pages.file, 5 * PAGE, 10) == CONTENT[5 * PAGE : 5 * PAGE + 10]
