"""Data sets in a store: rows, directories of objects, and what is shared by both.

`kara_cache.KaraStorage` is the face of all of it.
"""

from __future__ import annotations
