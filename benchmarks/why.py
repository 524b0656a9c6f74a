"""Why a row misses its target, from profiles. Shown beside a row only when it does."""

from __future__ import annotations

WHY: dict[str, str] = {}
