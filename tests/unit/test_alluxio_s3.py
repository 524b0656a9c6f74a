"""The S3 dialect without sockets: signatures against botocore's signer, framing, XML, parts of uploads."""

from __future__ import annotations

import asyncio
import base64
import zlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from hashlib import md5, sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from services import require_module

from kara_cache.ufs.base import FileInfo
from kara_worker.alluxio.aws_chunked import AwsChunked
from kara_worker.alluxio.s3_body import content_of
from kara_worker.alluxio.s3_errors import S3Error, as_s3_error
from kara_worker.alluxio.s3_uploads import S3Uploads, join
from kara_worker.alluxio.s3_xml import document, etag, parse_delete, parse_parts, text
from kara_worker.alluxio.sigv4 import Incoming, Signed, verify
from kara_worker.alluxio_config import S3Key

require_module("botocore")
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth  # noqa: E402
from botocore.awsrequest import AWSRequest  # noqa: E402
from botocore.credentials import Credentials  # noqa: E402

KEY = S3Key("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
OTHER = S3Key("OTHER", "another-secret", read_only=True)


def now() -> float:
    """When it is asked: botocore signs by the clock, and a run of the suite takes longer than 15 minutes."""
    return datetime.now(timezone.utc).timestamp()


names = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=20)


def signed(
    method: str, path: str, query: dict[str, str], *, body: bytes = b"", expires: int = 0, key: S3Key = KEY
) -> Incoming:
    """As boto3 would send it."""
    target = quote(path, safe="/~")
    pairs = "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in query.items())
    url = f"http://host.example:29998{target}" + (f"?{pairs}" if pairs else "")
    request = AWSRequest(method, url, data=body)
    credentials = Credentials(key.access_key, key.secret_key)
    kind = S3SigV4QueryAuth if expires else S3SigV4Auth
    auth = kind(credentials, "s3", "us-east-1", **({"expires": expires} if expires else {}))
    auth.add_auth(request)
    prepared = request.prepare()
    parts = urlsplit(prepared.url)
    headers = {name.lower(): _text(value) for name, value in prepared.headers.items()}
    headers["host"] = "host.example:29998"
    return Incoming(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, headers)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@given(names, st.dictionaries(names, names, max_size=4), st.sampled_from(["GET", "PUT", "DELETE"]))
def test_what_botocore_signs_is_accepted(name: str, query: dict[str, str], method: str) -> None:
    incoming = signed(method, f"/data/dir/{name}", query, body=b"content" if method == "PUT" else b"")
    found = verify(incoming, [OTHER, KEY], now())
    assert found.key == KEY


@given(names, st.dictionaries(names, names, max_size=3))
def test_presigned_urls_of_botocore(name: str, query: dict[str, str]) -> None:
    incoming = signed("GET", f"/data/{name}", query, expires=60)
    assert verify(Incoming("GET", incoming.target, {"host": "host.example:29998"}), [KEY], now()).key == KEY


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda r: Incoming("DELETE", r.target, r.headers), "SignatureDoesNotMatch"),
        (lambda r: Incoming(r.method, r.target.replace("file", "fine"), r.headers), "SignatureDoesNotMatch"),
        (lambda r: Incoming(r.method, r.target + "&versionId=1", r.headers), "SignatureDoesNotMatch"),
        (lambda r: Incoming(r.method, r.target, r.headers | {"host": "other"}), "SignatureDoesNotMatch"),
        (
            lambda r: Incoming(
                r.method, r.target, r.headers | {"x-amz-content-sha256": sha256(b"x").hexdigest()}
            ),
            "SignatureDoesNotMatch",
        ),
        (lambda r: Incoming(r.method, r.target, {"host": "h"}), "AccessDenied"),
        (
            lambda r: Incoming(
                r.method,
                r.target,
                r.headers | {"authorization": r.headers["authorization"].replace("AKID", "AKIE")},
            ),
            "InvalidAccessKeyId",
        ),
        (
            lambda r: Incoming(
                r.method,
                r.target,
                r.headers | {"authorization": r.headers["authorization"].replace("/s3/", "/iam/")},
            ),
            "AuthorizationHeaderMalformed",
        ),
        (
            lambda r: Incoming(
                r.method,
                r.target,
                r.headers | {"authorization": r.headers["authorization"].replace("host;", "")},
            ),
            "AccessDenied",
        ),
        (
            lambda r: Incoming(r.method, r.target, r.headers | {"authorization": "AWS4-HMAC-SHA256 x"}),
            "AuthorizationHeaderMalformed",
        ),
    ],
)
def test_a_changed_request_is_refused(change: Any, code: str) -> None:
    incoming = signed("GET", "/data/file", {"list": "1"})
    assert verify(incoming, [KEY], now()).key == KEY
    with pytest.raises(S3Error) as caught:
        verify(change(incoming), [KEY], now())
    assert caught.value.code == code


def test_old_requests_and_old_urls() -> None:
    with pytest.raises(S3Error, match="too far"):
        verify(signed("GET", "/data/file", {}), [KEY], now() + 1000)
    incoming = signed("GET", "/data/file", {}, expires=60)
    with pytest.raises(S3Error, match="expired"):
        verify(incoming, [KEY], now() + 100)
    with pytest.raises(S3Error, match="not valid yet"):
        verify(incoming, [KEY], now() - 2000)


def test_a_wrong_secret() -> None:
    wrong = S3Key(KEY.access_key, "not the secret")
    with pytest.raises(S3Error) as caught:
        verify(signed("GET", "/data/file", {}, key=wrong), [KEY], now())
    assert caught.value.code == "SignatureDoesNotMatch"
    assert KEY.secret_key not in str(caught.value)


# -- aws-chunked ----------------------------------------------------------------------------------------

# "Example: PUT object" of the S3 API reference, signature calculations for chunked uploads
EXAMPLE = Signed(
    S3Key("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
    "20130524T000000Z",
    "20130524/us-east-1/s3/aws4_request",
    "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    b"",
)
EXAMPLE_CHUNKS = [
    (b"a" * 65536, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
    (b"a" * 1024, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
    (b"", "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
]


def example() -> Signed:
    from kara_worker.alluxio.sigv4 import _signing_key

    key = _signing_key(EXAMPLE.key.secret_key, EXAMPLE.scope)
    return Signed(EXAMPLE.key, EXAMPLE.date, EXAMPLE.scope, EXAMPLE.signature, key)


def framed(chunks: list[tuple[bytes, str]], trailer: bytes = b"") -> bytes:
    return (
        b"".join(
            b"%x%b\r\n%b%b"
            % (len(data), f";chunk-signature={tag}".encode() if tag else b"", data, b"\r\n" if data else b"")
            for data, tag in chunks
        )
        + trailer
        + b"\r\n"
    )


def unframed(decoder: AwsChunked, body: bytes, step: int) -> bytes:
    content = b"".join(b"".join(decoder.feed(body[at : at + step])) for at in range(0, len(body), step))
    decoder.finish()
    return content


@pytest.mark.parametrize("step", [1 << 20, 1000, 7])
def test_the_example_of_the_reference(step: int) -> None:
    body = framed(EXAMPLE_CHUNKS)
    assert unframed(AwsChunked(example()), body, step) == b"a" * 66560


def test_a_changed_chunk_is_refused() -> None:
    body = bytearray(framed(EXAMPLE_CHUNKS))
    body[40000] ^= 1
    with pytest.raises(S3Error, match="signature of a chunk"):
        unframed(AwsChunked(example()), bytes(body), 1 << 20)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.integers(1, 40))
def test_unsigned_chunks_with_a_trailer(parts: list[bytes], step: int) -> None:
    checksum = base64.b64encode(zlib.crc32(b"".join(parts)).to_bytes(4, "big"))
    chunks = [(part, "") for part in parts] + [(b"", "")]
    decoder = AwsChunked(None)
    body = framed(chunks, b"x-amz-checksum-crc32:" + checksum + b"\r\n")
    assert unframed(decoder, body, step) == b"".join(parts)
    assert decoder.trailers == {"x-amz-checksum-crc32": checksum.decode()}


def test_bodies_that_end_early_or_are_no_chunks() -> None:
    body = framed([(b"abc", ""), (b"", "")])
    for cut in range(len(body) - 4):
        decoder = AwsChunked(None)
        decoder.feed(body[:cut])
        with pytest.raises(S3Error, match="ended before"):
            decoder.finish()
    for wrong in (b"xyz\r\n", b"3\r\nabcd\r\n", b"1" * 5000, b"fffffffffffffff\r\n"):
        with pytest.raises(S3Error):
            AwsChunked(None).feed(wrong)
    with pytest.raises(S3Error, match="not signed"):
        unframed(AwsChunked(example(), signed_trailer=True), framed(EXAMPLE_CHUNKS), 1 << 20)


class Body:
    """The part of a request that `content_of` reads."""

    def __init__(self, data: bytes, **headers: str) -> None:
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self._data = data

    async def body(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self._data), 5):
            yield self._data[at : at + 5]


def taken(body: Body) -> bytes:
    async def main() -> bytes:
        return b"".join([piece async for piece in content_of(body, None)])  # type: ignore[arg-type]

    return asyncio.run(main())


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_every_digest_is_compared() -> None:
    data = b"some content"
    right = {
        "x_amz_content_sha256": sha256(data).hexdigest(),
        "content_md5": b64(md5(data).digest()),
        "x_amz_checksum_sha256": b64(sha256(data).digest()),
        "x_amz_checksum_crc32": b64(zlib.crc32(data).to_bytes(4, "big")),
        "x_amz_decoded_content_length": str(len(data)),
    }
    assert taken(Body(data, **right)) == data
    for name, code in [
        ("x_amz_content_sha256", "XAmzContentSHA256Mismatch"),
        ("content_md5", "BadDigest"),
        ("x_amz_checksum_sha256", "BadDigest"),
        ("x_amz_checksum_crc32", "BadDigest"),
        ("x_amz_decoded_content_length", "IncompleteBody"),
    ]:
        wrong = {"x_amz_content_sha256": sha256(b"").hexdigest()}.get(name, "MTIz")
        with pytest.raises(S3Error) as caught:
            taken(Body(data, **{**right, name: wrong}))
        assert caught.value.code == code


# -- XML --------------------------------------------------------------------------------------------------


def test_documents_are_escaped() -> None:
    assert document("A", text("B", "<&>")).endswith(b"<B>&lt;&amp;&gt;</B></A>")


def test_parts_and_keys_of_clients() -> None:
    body = (
        b'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        b"<Part><PartNumber>1</PartNumber><ETag>&quot;abc&quot;</ETag></Part>"
        b"<Part><ETag>def</ETag><PartNumber>3</PartNumber></Part></CompleteMultipartUpload>"
    )
    assert parse_parts(body) == [(1, "abc"), (3, "def")]
    delete = (
        b"<Delete><Quiet>true</Quiet><Object><Key>a b</Key></Object><Object><Key>c/d</Key></Object></Delete>"
    )
    assert parse_delete(delete) == (["a b", "c/d"], True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<Other/>",
        b"<CompleteMultipartUpload/>",
        b"<!DOCTYPE x [<!ENTITY a 'b'>]><CompleteMultipartUpload/>",
        b"<CompleteMultipartUpload><Part><PartNumber>x</PartNumber></Part></CompleteMultipartUpload>",
        (
            b"<CompleteMultipartUpload><Part><PartNumber>2</PartNumber></Part>"
            b"<Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>"
        ),
        b"\xff\xfe",
    ],
)
def test_documents_that_are_none(body: bytes) -> None:
    with pytest.raises(S3Error) as caught:
        parse_parts(body)
    assert caught.value.code in ("MalformedXML", "InvalidPartOrder")


def test_etags_are_the_version_where_they_can_be() -> None:
    assert etag(FileInfo("a", 1, "5d41402abc4b2a76b9719d911017c592")) == '"5d41402abc4b2a76b9719d911017c592"'
    odd = etag(FileInfo("a", 1, 'quote"\r\n'))
    assert odd != etag(FileInfo("a", 1, "other version"))
    assert odd.strip('"').replace("-", "").isalnum()


def test_errors_of_the_worker_in_words_of_s3() -> None:
    codes = {
        FileNotFoundError(2, "x", "/root/secret/path"): "NoSuchKey",
        PermissionError("x"): "AccessDenied",
        ValueError("x"): "InvalidArgument",
        TimeoutError("x"): "SlowDown",
        KeyError("x"): "InternalError",
    }
    for error, code in codes.items():
        assert as_s3_error(error).code == code
    assert "secret" not in str(as_s3_error(FileNotFoundError(2, "x", "/root/secret/path")))


# -- parts of uploads ---------------------------------------------------------------------------------------


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def broken() -> AsyncIterator[bytes]:
    yield b"some"
    raise S3Error("BadDigest", "x")


class Memory:
    """An `UnderStoreWriter`."""

    def __init__(self) -> None:
        self.data = b""
        self.aborted = False

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def commit(self) -> FileInfo:
        return FileInfo("f", len(self.data), "v")

    def abort(self) -> None:
        self.aborted = True

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_parts_in_any_order_become_one_file(tmp_path: Path) -> None:
    root = tmp_path / "uploads"
    (root / "left by a killed process").mkdir(parents=True)
    with ThreadPoolExecutor(1) as threads:

        async def main() -> None:
            uploads = S3Uploads(root, threads)
            assert not root.exists()
            found = uploads.begin("/data/file")
            await uploads.add(found, 3, pieces(b"three"))
            await uploads.add(found, 1, pieces(b"wrong"))
            one = await uploads.add(found, 1, pieces(b"o", b"ne"))
            with pytest.raises(S3Error):
                await uploads.add(found, 2, broken())
            threads.submit(int).result(10)  # what was broken off is removed by a thread
            assert (one.etag, one.size) == (md5(b"one").hexdigest(), 3)
            assert sorted(found.parts) == [1, 3]
            assert len(list(found.directory.iterdir())) == 2
            for wrong in ([(2, "")], [(1, "0" * 32)]):
                with pytest.raises(S3Error, match="part"):
                    uploads.chosen(found, wrong)
            writer = Memory()
            join(uploads.chosen(found, [(1, one.etag), (3, "")]), writer)  # type: ignore[arg-type]
            assert writer.data == b"onethree"
            for identity, path in ((found.id, "/data/other"), ("x", "/data/file")):
                with pytest.raises(S3Error, match="no such upload"):
                    uploads.find(identity, path)
            with pytest.raises(S3Error, match="part number"):
                await uploads.add(found, 10_001, pieces(b""))
            uploads.end(found)
            uploads.close()

        asyncio.run(main())
    assert not root.exists()


def test_uploads_that_nobody_ends_are_dropped(tmp_path: Path) -> None:
    now = 0.0
    with ThreadPoolExecutor(1) as threads:
        uploads = S3Uploads(tmp_path / "uploads", threads, clock=lambda: now)
        old = uploads.begin("/data/old")
        now = 25 * 3600.0
        new = uploads.begin("/data/new")
        assert [upload.path for upload in uploads.below("/data/")] == ["/data/new"]
        with pytest.raises(S3Error):
            uploads.find(old.id, "/data/old")
        assert uploads.find(new.id, "/data/new") is new
        uploads.close()
