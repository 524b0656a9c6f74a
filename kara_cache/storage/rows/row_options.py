"""How one row data set is opened."""

from __future__ import annotations

import dataclasses
from typing import Any

from kara_cache.errors import ConfigError

MAX_FILE_BYTES = 128 << 20  # of the published package, which damages segments that are larger when it appends


@dataclasses.dataclass(frozen=True, slots=True)
class RowOptions:
    """The keywords of `KaraStorage.open` beside its positional arguments."""

    start: int = 0  # first row of the window
    length: int | None = None  # rows of the window; None: all that follow
    buffer_size: int = 1 << 20  # bytes fetched at a time when rows are read in order; 1 MiB stays in L2
    verify: bool = True  # compare rows with their checksums; 0.2 us for a row of 3 KB
    max_file_size: int = MAX_FILE_BYTES  # bytes of a segment that we write

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("length", 0), ("buffer_size", 1), ("max_file_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"option {name}: expected at least {least}, got {value}")

    @classmethod
    def of(cls, options: dict[str, Any]) -> RowOptions:
        """Raises ConfigError for an unknown name."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(f"option {name!r} of a row data set: known are {', '.join(known)}")
        return cls(**options)
