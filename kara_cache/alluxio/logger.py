"""`setup_logger` of alluxiofs: a file and the console."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

_NAME = "kara_cache"  # of the whole package, so that the file also tells of detours and lost workers
_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
_FILE = "user.log"
_LEVEL_VARIABLES = ("ALLUXIO_PYTHON_SDK_LOG_LEVEL", "PYTHON_LOGLEVEL")
_DIRECTORY_VARIABLE = "ALLUXIO_PYTHON_SDK_LOG_PATH"


def setup_logger(
    file_path: str | os.PathLike[str] | None = None,
    level: int | str | None = None,
    *,
    level_str: str | None = None,
) -> logging.Logger:
    """Lets this package log to `<file_path>/user.log` and to the console, and returns its logger.

    A second call with the same directory only changes the level: no line is written twice.

    Args:
        file_path: A directory, made where it is missing; else ALLUXIO_PYTHON_SDK_LOG_PATH, else `./logs`.
        level: A number or name of `logging`; else ALLUXIO_PYTHON_SDK_LOG_LEVEL, PYTHON_LOGLEVEL, else INFO.
        level_str: What later versions call it.
    """
    wanted = level_str if level_str is not None else level
    if wanted is None:
        wanted = next((os.environ[name] for name in _LEVEL_VARIABLES if os.environ.get(name)), logging.INFO)
    if isinstance(wanted, str):
        wanted = int(wanted) if wanted.isdigit() else wanted.upper()
    directory = Path(file_path if file_path is not None else os.environ.get(_DIRECTORY_VARIABLE) or "logs")
    logger = logging.getLogger(_NAME)
    logger.setLevel(wanted)  # first: a level that is none is a ValueError before anything is made
    directory.mkdir(parents=True, exist_ok=True)
    file = str((directory / _FILE).resolve())
    if not any(getattr(handler, "baseFilename", None) == file for handler in logger.handlers):
        _add(logger, logging.FileHandler(file, encoding="utf-8", delay=True))
    if not any(getattr(handler, "stream", None) is sys.stderr for handler in logger.handlers):
        _add(logger, logging.StreamHandler(sys.stderr))
    return logger


def _add(logger: logging.Logger, handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(handler)
