from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from mounted import Mounted
from services import require_module

torch = require_module("torch")

from kara_cache import KaraStorage  # noqa: E402
from kara_cache.errors import FormatError, StaleVersion  # noqa: E402
from kara_cache.sampling import RowOrder  # noqa: E402
from kara_cache.torch import ObjectMap, ResumableLoader, RowBatches, RowStream  # noqa: E402

pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(400),  # workers that are spawned load torch, each for itself
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
FILES = 60


def as_it_is(batch: Any) -> Any:
    return batch


def content(number: int) -> bytes:
    return f"file {number} ".encode() + bytes(number * 331)


def name(number: int) -> str:
    return f"{number % 3}/{number:03}.JPG"


@pytest.fixture
def files(kara: Mounted, place: tuple[str, Path]) -> str:
    url, directory = place
    for number in range(FILES):
        path = directory / name(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content(number))
    (directory / "0" / "labels.txt").write_text("not an image")
    (directory / "empty").mkdir()
    return url


NAMES = sorted(map(name, range(FILES)))
CONTENTS = [content(int(each[2:5])) for each in NAMES]


@pytest.fixture
def images(kara: Mounted, files: str) -> ObjectMap:
    return ObjectMap(files, suffixes=(".jpg", ".png"), **kara.options)


def test_files_by_number(images: ObjectMap) -> None:
    assert images.names == NAMES
    assert len(images) == FILES
    assert [images[number] for number in range(FILES)] == CONTENTS
    assert images[-1] == CONTENTS[-1]
    assert images.__getitems__([5, 5, 0]) == [CONTENTS[5], CONTENTS[5], CONTENTS[0]]
    assert list(images) == CONTENTS
    for wrong in (FILES, -FILES - 1):
        with pytest.raises(IndexError, match="of 60"):
            images[wrong]


def test_a_batch_is_one_request_to_each_worker(kara: Mounted, files: str) -> None:
    images = ObjectMap(files, local_reads=False, **kara.options)
    images.read_batch(range(FILES))
    answered = 'kara_worker_requests_total{method="ranges",result="ok"}'
    everything = "kara_worker_requests_total"
    ranges, others = kara.cluster.total(answered), kara.cluster.total(everything)
    images.read_batch(range(FILES))
    assert kara.cluster.total(answered) - ranges == 2
    assert kara.cluster.total(everything) - others == 2


def test_decoding(kara: Mounted, files: str) -> None:
    sizes = ObjectMap(files, decode=size_of, suffixes=(".jpg",), **kara.options)
    assert sizes[3] == (NAMES[3], len(CONTENTS[3]))


def size_of(path: str, data: bytes) -> tuple[str, int]:
    assert isinstance(data, bytes)
    return path, len(data)


def test_all_files_without_suffixes(kara: Mounted, files: str) -> None:
    assert len(ObjectMap(files, **kara.options)) == FILES + 1


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loaders(images: ObjectMap, method: str) -> None:
    order = RowOrder(FILES, shuffle=True, seed=4, epoch=0).rows_at(range(FILES))
    want = [CONTENTS[number] for number in order]
    batches = RowBatches(FILES, batch_size=8, seed=4)
    options: Any = {
        "num_workers": 2,
        "collate_fn": as_it_is,
        "multiprocessing_context": method,
        "timeout": 300,
    }
    loader = ResumableLoader(images, batches, **options)
    got = [item for batch in islice(loader, 3) for item in batch]
    loader.load_state_dict(loader.state_dict())
    assert got + [item for batch in loader for item in batch] == want
    stream = RowStream(images, batch_size=8, seed=4)
    assert [item for batch in ResumableLoader(stream, **options) for item in batch] == want


def test_it_pickles(images: ObjectMap) -> None:
    again = pickle.loads(pickle.dumps(images))
    assert again.names == NAMES
    assert again[7] == CONTENTS[7]


def test_a_file_that_is_replaced(place: tuple[str, Path], images: ObjectMap) -> None:
    """An epoch is of one version of the data: a change is an error, never another file's worth of bytes."""
    _, directory = place
    assert images[2] == CONTENTS[2]
    (directory / NAMES[9]).write_bytes(b"other")
    with pytest.raises(StaleVersion):
        images[9]
    assert images[2] == CONTENTS[2]


def test_nothing_there(kara: Mounted, files: str) -> None:
    with pytest.raises(FileNotFoundError, match="no file that ends with"):
        ObjectMap(files, suffixes=(".webp",), **kara.options)
    with pytest.raises(FileNotFoundError):
        ObjectMap(f"{files}/nowhere", **kara.options)


def test_not_of_the_cache(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not a url of the cache"):
        ObjectMap(f"file://{tmp_path}")


def test_repr(images: ObjectMap) -> None:
    assert repr(images).startswith("<ObjectMap of 60 files in kara://data/")


# -- of a saved version ------------------------------------------------------------------------------------


@pytest.fixture
def storage(kara: Mounted, place: tuple[str, Path], tmp_path: Path) -> Iterator[KaraStorage]:
    """A version with two files of the same content, and one after it without them."""
    directory = tmp_path / "local"
    for number in range(FILES):
        (directory / name(number)).parent.mkdir(parents=True, exist_ok=True)
        (directory / name(number)).write_bytes(content(number % 40))
    found = KaraStorage(f"kara::file://{place[1]}", kara=kara.options)
    found.save_directory("set", "images", directory, "1", progress_bar=False)
    for number in range(40, FILES):
        (directory / name(number)).unlink()
    found.save_directory("set", "images", directory, "2", progress_bar=False)
    yield found
    found.location.close()


def test_files_of_a_version(storage: KaraStorage) -> None:
    images = ObjectMap.of_version(storage, "set", "images", 1, suffixes=(".jpg",))
    assert images.names == NAMES
    assert list(images) == [content(int(each[2:5]) % 40) for each in NAMES]
    assert len(ObjectMap.of_version(storage, "set", "images")) == 40
    again = pickle.loads(pickle.dumps(images))
    assert again[59] == images[59]
    again.close()
    sizes = ObjectMap.of_version(storage, "set", "images", "1", decode=size_of)
    assert sizes[3] == (NAMES[3], len(images[3]))


def test_versions_that_are_not_there(storage: KaraStorage, place: tuple[str, Path]) -> None:
    with pytest.raises(FileNotFoundError, match="not found"):
        ObjectMap.of_version(storage, "set", "images", "3")
    with pytest.raises(TypeError, match="kara::"):
        ObjectMap.of_version(KaraStorage(f"file://{place[1]}"), "set", "images")
    blob = max((place[1] / "obj" / "set" / "images" / "data").iterdir())
    blob.unlink()
    with pytest.raises(FormatError, match="have no blob, among them"):
        ObjectMap.of_version(storage, "set", "images", "1")
