"""What a batch asks for, cut into requests and put together again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kara_cache.mount import Mount
from kara_worker.jobs.batch import Piece
from kara_worker.jobs.runs import (
    GROUP_BYTES,
    GROUP_FILES,
    GROUP_S,
    SMALL_BYTES,
    Run,
    group_bytes,
    group_files,
    grouped,
    runs_of,
)
from kara_worker.page_cache import RUN_BYTES, FileRef

PAGE = 64 << 10
MOUNTS = [Mount(name, f"memory://{name}") for name in "ab"]
SIZES = st.one_of(st.integers(0, 3 * PAGE), st.integers(0, 3 * RUN_BYTES))


def bytes_of(run: Run) -> int:
    return min(run.pages.stop * PAGE, run.ref.size) - run.pages.start * PAGE


@given(st.lists(st.tuples(SIZES, st.integers(0, 1)), max_size=30), st.integers(1, GROUP_FILES))
def test_every_page_is_in_one_run_and_every_run_in_one_group(files: list[tuple[int, int]], most: int) -> None:
    pieces = [Piece(f"/f{number}", "v", size, 0, size) for number, (size, _) in enumerate(files)]
    refs = [
        FileRef(piece.path, MOUNTS[mount], piece.path[1:], "v", piece.size, bytes(16))
        for piece, (_, mount) in zip(pieces, files, strict=True)
    ]
    groups = list(grouped(runs_of(pieces, refs, PAGE), PAGE, lambda: most, lambda: GROUP_BYTES))
    runs = [run for group in groups for run in group]
    got = [(run.piece, index) for run in runs for index in run.pages]
    assert sorted(got) == [
        (number, index) for number, (size, _) in enumerate(files) for index in range(-(-size // PAGE))
    ]
    assert all(bytes_of(run) <= RUN_BYTES for run in runs)
    for group in groups:
        sizes = [bytes_of(run) for run in group]
        assert len(group) == 1 or (max(sizes) <= SMALL_BYTES and sum(sizes) <= GROUP_BYTES)
        assert len(group) <= most
        assert len({run.ref.mount.name for run in group}) == 1


def test_groups_are_what_the_store_gives_in_a_moment() -> None:
    assert group_files(0.0) == 1  # nobody knows yet
    assert group_files(0.001) == 20
    assert group_files(0.00001) == GROUP_FILES
    assert group_files(0.02) == group_files(5.0) == 1


def test_limits_are_kept_without_bursts() -> None:
    assert group_files(0.0001, None, 1000.0) == 1000 * GROUP_S
    assert group_files(0.0001, 1.0, None) == 1
    assert group_bytes(None, 1e6) == 1e6 * GROUP_S
    assert group_bytes(None, None) == GROUP_BYTES
