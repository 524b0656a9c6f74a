"""The rows that everybody reads: JSON records as of a text corpus, 3 KB on average, the same in every run.

    python -m benchmarks.rows.generate DIRECTORY --rows 339693

writes `rows.bin`, all rows end to end, and `ends.bin`, the end of each as a little-endian uint64:
the plainest format there is, which is also what the peers are compared with.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FULL_ROWS = 339_693  # about a gigabyte
_SEED = 20
_WORDS = 4096
_TEXT_BYTES = 2750  # on average; with the other fields a row has 3 KB
_TAGS = ("news", "code", "wiki", "forum", "paper", "book", "math", "legal", "中文", "日本語")


@dataclass(frozen=True)
class Rows:
    """The generated files."""

    data: Path
    ends: Path
    count: int

    @property
    def size(self) -> int:
        return self.data.stat().st_size


def documents(count: int) -> Iterator[dict[str, object]]:
    """Nested, with numbers and text beyond ASCII, as real records have."""
    source = random.Random(_SEED)
    words = [_word(source) for _ in range(_WORDS)]
    # text is cut out of one long piece: joining words for each row would take minutes
    text = " ".join(source.choices(words, k=300_000))
    for number in range(count):
        length = int(source.lognormvariate(0.0, 0.45) * _TEXT_BYTES * 0.905)
        at = source.randrange(len(text) - length) if length < len(text) else 0
        yield {
            "id": f"doc-{number:09d}",
            "text": text[at : at + length],
            "tokens": length // 4,
            "score": round(source.random(), 6),
            "label": source.randrange(1000),
            "tags": source.sample(_TAGS, 2),
            "meta": {
                "source": f"https://example.org/{source.randrange(10**9)}",
                "quality": [round(source.gauss(0, 1), 4) for _ in range(4)],
                "kept": source.random() < 0.9,
                "parent": None,
            },
        }


def _word(source: random.Random) -> str:
    if source.random() < 0.02:
        return "".join(chr(source.randrange(0x4E00, 0x5E00)) for _ in range(2))
    return "".join(source.choices("etaoinshrdlucmfwypvbgk", k=source.randint(2, 10)))


def generate(directory: Path, count: int) -> Rows:
    """Makes the files, or takes those that are there already."""
    rows = Rows(directory / f"rows-{count}.bin", directory / f"ends-{count}.bin", count)
    if rows.ends.exists():
        return rows
    directory.mkdir(parents=True, exist_ok=True)
    ends, at = array("Q"), 0
    unfinished = rows.data.with_suffix(".part")
    with open(unfinished, "wb", buffering=1 << 20) as out:
        for document in documents(count):
            row = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
            out.write(row)
            at += len(row)
            ends.append(at)
    if sys.byteorder == "big":
        ends.byteswap()
    unfinished.rename(rows.data)
    rows.ends.write_bytes(ends.tobytes())
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=FULL_ROWS)
    options = parser.parse_args()
    rows = generate(options.directory, options.rows)
    print(f"{rows.count} rows, {rows.size} bytes, {rows.size / rows.count:.0f} on average: {rows.data}")


if __name__ == "__main__":
    main()
