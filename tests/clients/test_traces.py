"""Spans of reads, as a real OTLP receiver gets them from a client and from workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from services import require_module

require_module("opentelemetry.sdk")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: E402
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF  # noqa: E402

from kara_cache.cache_client import CacheClient  # noqa: E402
from kara_cache.config import ClientConfig  # noqa: E402
from kara_cache.errors import ConfigError  # noqa: E402
from kara_cache.reading.file_reads import FileReads  # noqa: E402
from kara_cache.tracing.read_spans import ReadSpans  # noqa: E402
from kara_worker.testing.cluster import LocalCluster  # noqa: E402

pytestmark = pytest.mark.clients
DATA = os.urandom(2_500_000)
PATIENCE_S = 60.0
SERVED = "kara.worker GET /kara/v1/read"
DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


@dataclass
class Span:
    """One of protobuf's, in plain words."""

    service: str
    instance: str
    name: str
    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    attributes: dict[str, Any]
    events: list[str]
    failed: bool


@dataclass
class Receiver:
    """An OTLP/HTTP endpoint."""

    spans: list[Span] = field(default_factory=list)

    def __enter__(self) -> Receiver:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                receiver.add(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, request: Any) -> None:
        for resource_spans in request.resource_spans:
            resource = {item.key: item.value.string_value for item in resource_spans.resource.attributes}
            for scope in resource_spans.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        Span(
                            resource.get("service.name", ""),
                            resource.get("service.instance.id", ""),
                            span.name,
                            span.trace_id,
                            span.span_id,
                            span.parent_span_id,
                            {a.key: a.value.string_value or a.value.int_value for a in span.attributes},
                            [event.name for event in span.events],
                            span.status.code == 2,
                        )
                    )

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline, self.spans
            time.sleep(0.02)


@pytest.fixture(scope="module")
def running_receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def receiver(running_receiver: Receiver) -> Receiver:
    running_receiver.spans.clear()
    return running_receiver


@pytest.fixture(scope="module")
def cluster(running_receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    store = tmp_path_factory.mktemp("store")
    (store / "file.bin").write_bytes(DATA)
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": running_receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    mounts = {"data": f"file://{store}"}
    with LocalCluster(1, mounts=mounts, environment=environment, trace=True) as running:
        yield running


def example() -> str:
    text = DOCUMENT.read_text().split("\n## Traces\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    return str(code)


def run(code: str, cluster: LocalCluster, receiver: Receiver, **environment: str) -> str:
    found = {f"KARA_{key.upper()}": str(value) for key, value in cluster.client_options.items()}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **found, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
             "OTEL_SERVICE_NAME": "train", "KARA_LOCAL_READS": "0", **environment},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_documented_program(cluster: LocalCluster, receiver: Receiver) -> None:
    """A cold read and a hit, both asked of the worker, each with a span of its own there."""
    run(example() + "assert fs.cat_file('kara://data/file.bin') == data\n", cluster, receiver)
    reads = receiver.named("kara.read")
    assert reads
    assert {read.service for read in reads} == {"train"}
    receiver.until(lambda: len(receiver.named(SERVED)) >= len(reads))
    served = {span.parent_id: span for span in receiver.named(SERVED)}
    for read in reads:
        assert read.attributes["kara.path"] == "/data/file.bin"
        assert read.attributes["kara.worker"] in (cluster.workers[0].id, cluster.workers[0].address)
        assert "network" in read.events
        assert not read.failed
        below = served[read.span_id]
        assert (below.trace_id, below.service) == (read.trace_id, "kara-worker")
        assert below.instance == cluster.workers[0].id
    assert sum(int(read.attributes["kara.length"]) for read in reads) >= len(DATA)
    (epoch,) = receiver.named("epoch")
    assert epoch.span_id in {read.parent_id for read in reads}


PROVIDER = """
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
"""
READ = """
from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.ufs.base import FileInfo
def read(path, **settings):
    with CacheClient(ClientConfig.load(**settings)) as client:
        client.read(client.info(path), 0, 100_000)
"""


def test_slow_reads_have_spans_that_no_worker_knows(cluster: LocalCluster, receiver: Receiver) -> None:
    code = """
read('/data/file.bin', trace_slow_s=0)
read('/data/file.bin', trace_slow_s=1000)
read('/data/file.bin', trace_reads=1)
"""
    run(PROVIDER + READ + code, cluster, receiver)
    slow, sampled = receiver.named("kara.read")
    receiver.until(lambda: receiver.named(SERVED))
    (served,) = receiver.named(SERVED)  # spans leave a worker in their order: it had no other one before
    assert served.parent_id == sampled.span_id
    assert slow.trace_id != sampled.trace_id
    assert "network" in slow.events


def test_a_read_that_fails_says_so(cluster: LocalCluster, receiver: Receiver) -> None:
    code = """
from kara_cache.errors import WorkerUnavailable
with CacheClient(ClientConfig(worker_hosts=("127.0.0.1:9",), trace_reads=1.0)) as client:
    try:
        client.read(FileInfo("/data/file.bin", 100, "v1"), 0, 10)
    except WorkerUnavailable:
        print("failed")
"""
    assert run(PROVIDER + READ + code, cluster, receiver) == "failed\n"
    (read,) = receiver.named("kara.read")
    assert read.failed
    assert "kara.worker" not in read.attributes


def test_off_means_off(cluster: LocalCluster, receiver: Receiver) -> None:
    code = "read('/data/file.bin')\nimport sys\nassert 'opentelemetry' not in sys.modules\n"
    run(READ + code, cluster, receiver)
    with CacheClient(ClientConfig()) as client:
        assert type(client._reads) is FileReads
    assert receiver.spans == []


def test_one_in_four_is_one_in_four() -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    spans = ReadSpans(0.25, None, provider.get_tracer("test"))
    begun = [spans.begin() for _ in range(40)]
    assert [number for number, span in enumerate(begun) if span is not None] == list(range(3, 40, 4))
    for span in begun:
        if span is not None:
            fields = spans.fields(span)
            assert re.fullmatch(rb"traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]\r\n", fields)
            spans.end(span, 0.5, {"path": "/a"}, {"wait": 0.1, "network": 0.2}, None)
    assert len(kept.get_finished_spans()) == 10
    first = kept.get_finished_spans()[0]
    assert [event.name for event in first.events] == ["wait", "network"]
    provider.shutdown()


def test_who_samples_decides() -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF)
    spans = ReadSpans(1.0, None, provider.get_tracer("test"))
    span = spans.begin()
    assert span is not None
    assert spans.fields(span) == b""
    provider.shutdown()


@pytest.mark.parametrize("settings", [{"trace_reads": 1.5}, {"trace_reads": -1.0}, {"trace_slow_s": -1.0}])
def test_parts_are_parts(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="trace_"):
        ClientConfig(**settings)
