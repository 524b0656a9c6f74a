"""Directories of images, one directory for each label, as torchvision's ImageFolder has them.

A row is {"path": relative, "label": the first directory of the path or None, "image": the file's bytes};
its key is the path. Images are not decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kara_cache.storage.interchange.record import Record
from kara_cache.ufs.path import check_path

EXTENSIONS = frozenset(
    {
        ".bmp",
        ".gif",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }  # torchvision's, and GIF
)
_BEGINNINGS = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"BM": ".bmp", b"RIFF": ".webp"}


def read(source: str) -> Iterator[Record]:
    """In the order of their paths."""
    root = Path(source)
    for path in _images(root):
        name = path.relative_to(root).as_posix()
        label = name.partition("/")[0] if "/" in name else None
        yield Record(name, {"path": name, "label": label, "image": path.read_bytes()})


def count(source: str) -> int | None:
    return len(_images(Path(source)))


def write(records: Iterable[Record], target: str) -> int:
    """Raises ValueError for a path that leads out of `target`, or that two rows have."""
    root = Path(target)
    root.mkdir(parents=True, exist_ok=True)
    done = 0
    for done, record in enumerate(records, start=1):
        row = record.row
        if not isinstance(row, dict) or not isinstance(row.get("image"), bytes):
            raise TypeError(f"row {done - 1}: want a dict with bytes under 'image', got {type(row).__name__}")
        place = root / _name(row, record.key, done - 1)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with place.open("xb") as out:
                out.write(row["image"])
        except FileExistsError as exc:
            raise ValueError(f"row {done - 1}: an earlier row has the path {place}") from exc
    return done


def _images(root: Path) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: not a directory")
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not found:
        raise FileNotFoundError(f"{root}: a directory without images ({', '.join(sorted(EXTENSIONS))})")
    return found


def _name(row: dict[str, Any], key: str | None, number: int) -> str:
    name = row.get("path") or key or f"{number:08}"
    if Path(name).suffix.lower() not in EXTENSIONS:
        begins = (extension for begin, extension in _BEGINNINGS.items() if row["image"].startswith(begin))
        name += next(begins, ".bin")
    label = row.get("label")
    if "path" not in row and label is not None and not name.startswith(f"{label}/"):
        name = f"{label}/{name}"
    try:
        return check_path(name)
    except ValueError as exc:
        raise ValueError(f"row {number}: {exc}") from exc
