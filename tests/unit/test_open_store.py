from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kara_cache.errors import ConfigError
from kara_cache.ufs import open_store


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("file:///tmp", "LocalStore"),
        ("/tmp", "LocalStore"),
        ("FILE:///tmp", "LocalStore"),
        ("http://host/x", "HttpStore"),
        ("https://host/x", "HttpStore"),
        ("memory://x", "FsspecStore"),
        ("dir::file:///tmp", "FsspecStore"),
    ],
)
def test_scheme(url: str, kind: str) -> None:
    store = open_store(url)
    assert type(store).__name__ == kind
    store.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://x", r"'nonsense' is not known; known are file, http, https, local, oss, s3, s3a"),
        ("kara://cluster/x", "its own under store"),
        ("dir::kara://cluster/x", "its own under store"),
        ("relative/path", "absolute path"),
        ("", "absolute path"),
        ("://x", "absolute path"),
        ("smb://host/share", "smbprotocol"),
    ],
)
def test_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "library", "extra"), [("oss://e/b", "oss2", "oss"), ("s3://b", "boto3", "s3")]
)
def test_missing_library_names_the_extra(
    url: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for name in [name for name in sys.modules if name in ("kara_cache.ufs.oss", "kara_cache.ufs.s3")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=rf"needs {library}: pip install kara-cache\[{extra}\]"):
        open_store(url)


def test_store_loads_only_what_it_needs(tmp_path: Path) -> None:
    code = (
        "import sys; from kara_cache.ufs import open_store; open_store(sys.argv[1]);"
        "print(*sorted({'fsspec', 'urllib3', 'oss2', 'boto3', 'requests'} & sys.modules.keys()))"
    )
    for url, loaded in ((str(tmp_path), ""), ("http://host/", "")):
        done = subprocess.run(
            [sys.executable, "-c", code, url], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.strip() == loaded
