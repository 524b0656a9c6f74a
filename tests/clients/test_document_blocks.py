"""Python blocks of the documents that follow a `<!-- run -->`, run as they stand there, in order.

Those of one document share their names. What a document may take as given:

    CLUSTER     how a cluster of three workers with etcd is found, whose mount `s3` is s3://bucket
    S3          options of s3fs for that bucket
    OPTIONS     the same as CLUSTER, as docs/fsspec.md calls it

The working directory is an empty one.
"""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from alluxio_places import AlluxioPlace

pytestmark = [
    pytest.mark.clients,
    pytest.mark.s3,
    pytest.mark.etcd,
    pytest.mark.usefixtures("filesystems_end_with_their_test"),
]

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^<!-- run -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DOCUMENTS = [
    str(path.relative_to(ROOT))
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    if "<!-- run -->" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_of(
    document: str, s3_place: AlluxioPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("<!-- run -->"), "a marker is not right before a python block"
    monkeypatch.chdir(tmp_path)
    options = s3_place.cluster.client_options
    names: dict[str, Any] = {"CLUSTER": options, "OPTIONS": options, "S3": s3_place.s3_options}
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for block in blocks:
            line = text[: block.start(1)].count("\n")
            code = "\n" * line + block[1]  # so that a traceback has the document's lines
            exec(compile(code, str(ROOT / document), "exec"), names)


def test_there_are_documents() -> None:
    assert "docs/migrating-from-alluxio.md" in DOCUMENTS
