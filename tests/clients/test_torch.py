from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from mounted import Mounted
from services import require_module

pytestmark = pytest.mark.clients
torch = require_module("torch")


def test_checkpoints(kara: Mounted, place: tuple[str, Path]) -> None:
    url, directory = place
    state = {"weights": torch.arange(1_000_000), "step": 3}
    with fsspec.open(f"{url}/state.pt", "wb", **kara.options) as file:
        torch.save(state, file)
    assert torch.load(directory / "state.pt", weights_only=True)["step"] == 3
    with fsspec.open(f"{url}/state.pt", **kara.options) as file:
        loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["weights"], state["weights"])


def test_a_checkpoint_cut_short_leaves_the_one_before(kara: Mounted, place: tuple[str, Path]) -> None:
    url, _ = place
    fs = kara.filesystem()
    with fs.open(f"{url}/state.pt", "wb") as file:
        torch.save({"step": 1}, file)

    class Unsaveable:
        def __reduce__(self) -> Any:
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), fs.open(f"{url}/state.pt", "wb") as file:
        torch.save({"step": 2, "weights": torch.ones(1000), "broken": Unsaveable()}, file)
    with fs.open(f"{url}/state.pt") as file:
        assert torch.load(file, weights_only=True)["step"] == 1


class Files(torch.utils.data.Dataset):  # type: ignore[misc, name-defined]
    """One instance for all processes of a loader, opened before they begin."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.fs, path = fsspec.core.url_to_fs(url, **options)
        self.paths = self.fs.find(path)
        self.first = self.fs.open(self.paths[0])
        self.first.read(1)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, int]:
        self.first.seek(0)
        return int(self.fs.cat(self.paths[index])), int(self.first.read())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_loader_with_processes(kara: Mounted, place: tuple[str, Path], method: str) -> None:
    url, directory = place
    for i in range(40):
        (directory / f"{i:03}").write_text(str(i))
    files = Files(url, kara.options)
    loader = torch.utils.data.DataLoader(
        files, batch_size=4, num_workers=2, multiprocessing_context=method, timeout=60
    )
    values, firsts = zip(*((batch[0], batch[1]) for batch in loader), strict=True)
    assert torch.cat(values).tolist() == list(range(40))
    assert set(torch.cat(firsts).tolist()) == {0}
    files.first.close()


def test_a_tar_of_samples_is_read_as_a_stream(kara: Mounted, place: tuple[str, Path]) -> None:
    url, directory = place
    with tarfile.open(directory / "shard.tar", "w") as shard:
        for i in range(100):
            member = tarfile.TarInfo(f"{i:04}.txt")
            data = str(i).encode() * 100
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    with kara.filesystem().open(f"{url}/shard.tar") as file, tarfile.open(fileobj=file, mode="r|") as shard:
        sizes = [member.size for member in shard]
    assert sizes == [len(str(i)) * 100 for i in range(100)]
