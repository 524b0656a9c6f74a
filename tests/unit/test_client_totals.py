"""What clients count, as a worker shows it."""

from __future__ import annotations

import re
from pathlib import Path

from kara_worker.data_port.client_totals import FALLBACKS, ClientTotals

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"


def shown(totals: ClientTotals) -> dict[str, float]:
    return {
        sample.labels["kind"]: sample.value
        for metric in totals.metrics()
        if metric.name == "kara_client_fallbacks"
        for sample in metric.samples
    }


def test_detours_begin_at_zero_and_add_up() -> None:
    """The first of a kind is a step that Prometheus can see, also at a worker that no client told yet."""
    totals = ClientTotals()
    assert shown(totals) == dict.fromkeys(FALLBACKS, 0)
    totals.add({"counters": {"fallbacks": {"busy": 2, "unheard": 1}}})
    totals.add({"counters": {"fallbacks": {"busy": 3}}})
    assert shown(totals) == {**dict.fromkeys(FALLBACKS, 0), "busy": 5, "unheard": 1}


def test_the_kinds_are_those_of_the_protocol() -> None:
    (row,) = re.findall(r"^\| `fallbacks` \|(.*?)\|", PROTOCOL.read_text(), flags=re.M)
    assert set(re.findall(r"`(\w+)`", row)) == set(FALLBACKS)
