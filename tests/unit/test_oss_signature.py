"""Our signatures of reads are those of OSS's own client."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from services import require_module

oss2 = require_module("oss2")

from kara_cache.ufs.oss_signature import ReadSigner  # noqa: E402 - once it is known that oss2 is there

pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
KEY_ID, SECRET, REGION = "id", "secret", "cn-hangzhou"
KEYS = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=40)


def signed_by_oss2(version: str, method: str, key: str, token: str) -> dict[str, str]:
    auth = oss2.make_auth(KEY_ID, SECRET, version)
    if token:
        auth = oss2.StsAuth(KEY_ID, SECRET, token, auth_version=version)
    headers = {"x-oss-range-behavior": "standard"} if method == "GET" else {}
    request: Any = oss2.http.Request(method, "http://host/", headers=headers, region=REGION, product="oss")
    auth._sign_request(request, "bucket", key)
    return {name.lower(): value for name, value in request.headers.items() if value is not None}


@pytest.mark.parametrize("version", ["v1", "v4"])
@settings(max_examples=60, deadline=None)
@given(key=KEYS, method=st.sampled_from(["GET", "HEAD"]), token=st.sampled_from(["", "token/+="]))
def test_signature_is_the_one_of_oss2(version: str, key: str, method: str, token: str) -> None:
    theirs = signed_by_oss2(version, method, key, token)
    moment = theirs.get("x-oss-date") or theirs["date"]
    signer = ReadSigner(
        "bucket", key_id=KEY_ID, secret=SECRET, token=token, region=REGION, version=version,
        clock=lambda: seconds(moment),
    )  # fmt: skip
    ours = dict(line.split(": ", 1) for line in signer.headers(method, key))
    assert ours == {name: theirs[name] for name in ours}
    assert {name for name in theirs if name.startswith("x-oss-")} <= set(ours)


def seconds(moment: str) -> float:
    from datetime import datetime, timezone
    from email.utils import parsedate_to_datetime

    if moment.endswith("Z"):
        return datetime.strptime(moment, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()
    return parsedate_to_datetime(moment).timestamp()


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_time_and_key_of_the_day_are_not_kept_too_long(version: str) -> None:
    now = 0.0
    signer = ReadSigner(
        "bucket", key_id=KEY_ID, secret=SECRET, token="", region=REGION, version=version, clock=lambda: now
    )
    first = signer.headers("GET", "key")
    assert signer.headers("GET", "key") == first
    now = 1.5
    assert signer.headers("GET", "key") != first
    now = 86400.0
    later = signer.headers("GET", "key")
    fresh = ReadSigner(
        "bucket", key_id=KEY_ID, secret=SECRET, token="", region=REGION, version=version, clock=lambda: now
    )
    assert later == fresh.headers("GET", "key")


def test_without_a_key_nothing_is_signed() -> None:
    signer = ReadSigner("bucket", key_id="", secret="", token="", region="", version="v4")
    assert signer.headers("GET", "key") == ["x-oss-range-behavior: standard"]
    assert signer.headers("HEAD", "key") == []
