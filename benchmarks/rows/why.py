"""Why a column falls short of what was to be reached, by measurement; printed beside it."""

from __future__ import annotations

WHY: dict[str, str] = {}
