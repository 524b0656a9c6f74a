"""Environments of published packages: those of the tests, so that each is made once."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from published import InstallError, environment

__all__ = ["InstallError", "environment"]
