"""What the image installs, as deploy/requirements.txt fixes it, is what the project and its offers need."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent.parent
EXTRAS = ("", "oss", "s3", "fast", "otel")  # "" is the base install; kv is for who makes data sets


def test_the_image_has_what_stores_and_traces_need() -> None:
    text = (ROOT / "deploy" / "requirements.txt").read_text()
    fixed = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, flags=re.M))
    wanted = [Requirement(line) for line in requires("kara-cache") or ()]
    environment = {"python_version": "3.12", "python_full_version": "3.12.0"}  # the image's
    needed = {
        one.name: one.specifier
        for one in wanted
        for extra in EXTRAS
        if one.marker is None or one.marker.evaluate({**environment, "extra": extra})
    }
    assert {"fsspec", "oss2", "boto3", "uvloop", "opentelemetry-sdk"} <= needed.keys()
    missing = {name for name, versions in needed.items() if not versions.contains(fixed.get(name, "0"))}
    assert missing == set()
    assert text.count("--hash=sha256:") > len(fixed)
