"""The one rule for paths below a store's root."""

from __future__ import annotations

_REFUSED = frozenset(("", ".", ".."))


def check_path(path: str) -> str:
    """`path` itself, if it stays below the root and has one spelling only; "" is the root.

    Segments "", "." and ".." are refused and not resolved: two spellings of a file would be two
    sets of pages, and every server resolves them differently.

    Raises:
        ValueError: the path and what is wrong with it.
    """
    if not path:
        return path
    if "\0" in path:
        raise ValueError(f"path {path!r}: NUL is not allowed")
    if not _REFUSED.isdisjoint(path.split("/")):
        raise ValueError(f'path {path!r}: empty segments, "." and ".." are not allowed')
    return path


def listing_key(path: str, is_dir: bool) -> str:
    """What a listing is sorted by: a directory as if it ended in "/", the order object stores have."""
    return path + "/" if is_dir else path
