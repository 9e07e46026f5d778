from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from marctl.capacity.cost.plan import Assumptions, plan, plans, unmeasured
from marctl.capacity.cost.prices import EXAMPLE, Prices, Service, Size, read_prices
from marctl.capacity.cost.throughput import from_report, read_report
from marctl.capacity.cost.usage import Usage, ordered
from marctl.cli import main
from marctl.core.errors import UserError

REPORT: dict[str, Any] = {
    "machine": {"cores": "2", "processor": "EPYC", "date": "2026-11-20"},
    "options": {"versions": "['mcqa/1.0']"},
    "summary": {"rps": 1030.0, "p99_ms": 91.2, "errors": 0},
    "cpu_s_per_1000": {"envoy": 0.14, "java": 0.11, "redis": 0.02, "mcqa 1.0": 1.73, "load generator": 0.18},
}
"""2.00 CPU-s for 1,000 requests: 500 a second for a core."""
SMALL = Size("small", "there", vcpus=2, memory_gib=4, hourly=0.1, spot_share=0.25)
PRICES = Prices("USD", "here", "2026", "a list", 0.08, {"there": Service(0.05)}, [SMALL])
NOT_A_NUMBER = json.dumps(REPORT | {"cpu_s_per_1000": {"envoy": float("nan")}})
NOTHING_LOST = Assumptions(utilisation=0.5, replicas=3, zones=1, answer_bytes=0)


def test_a_report_says_what_a_core_does_without_its_load_generator() -> None:
    found = from_report("report.json", REPORT)
    assert found.per_core == pytest.approx(500)
    assert found.warnings == []


def test_a_plan_is_the_formula_worked_out_by_hand() -> None:
    """4,000/s, a machine does 2 x 500: 4 at full use, 8 at half; 0.1 x 8 + 0.05 an hour of 14.4 million requests."""
    found = plan(4000, SMALL, "on demand", 1000, PRICES, NOTHING_LOST)
    assert (found.machines, found.needed, found.used) == (8, 4, 0.5)
    assert found.hourly == pytest.approx(0.85)
    assert found.per_million == pytest.approx(0.85 / 14.4)
    assert found.monthly == pytest.approx(0.85 * 730)


def test_a_small_load_takes_the_replicas_and_a_lost_zone_is_carried_by_the_others() -> None:
    assert plan(1, SMALL, "on demand", 1000, PRICES, NOTHING_LOST).machines == 3
    two = replace(NOTHING_LOST, utilisation=0.9, zones=2)
    assert plan(4000, SMALL, "on demand", 1000, PRICES, two).machines == 8, "4 are left, and needed"
    assert plan(4000, SMALL, "on demand", 1000, PRICES, replace(two, zones=3)).machines == 6


def test_spot_machines_are_those_beyond_the_replicas() -> None:
    found = plan(4000, SMALL, "spot", 1000, PRICES, NOTHING_LOST)
    assert found.hourly == pytest.approx(3 * 0.1 + 5 * 0.025 + 0.05)
    few = [plan(1, SMALL, terms, 1000, PRICES, NOTHING_LOST).hourly for terms in ("spot", "on demand")]
    assert few[0] == few[1]


def test_the_cache_answers_its_share_for_a_part_of_the_work() -> None:
    """Half of 4,000 for a quarter: 2,000 + 500."""
    how = replace(NOTHING_LOST, cached=0.5, cached_cost=0.25)
    assert plan(4000, SMALL, "on demand", 1000, PRICES, how).needed == pytest.approx(2.5)


def test_transfer_and_a_price_by_request_are_paid_for_each() -> None:
    asked = replace_size(SMALL, per_million_requests=0.4)
    how = replace(NOTHING_LOST, answer_bytes=1000)
    found = plan(1000, asked, "on demand", 1000, PRICES, how)
    assert found.per_million == pytest.approx((3 * 0.1 + 0.05) / 3.6 + 0.4 + 1e9 / 1e9 * 0.08)


def replace_size(size: Size, **changes: Any) -> Size:
    return Size(**{name: getattr(size, name) for name in Size.__struct_fields__} | changes)


def test_the_cheapest_comes_first_and_a_gpu_only_if_it_was_measured() -> None:
    gpu = replace_size(SMALL, name="big", gpu="A100", hourly=1.0, spot_share=None)
    prices = Prices("USD", "here", "2026", "a list", 0.0, {"there": Service(0.0)}, [gpu, SMALL])
    assert {each.size.name for each in plans(10_000, prices, 500, {}, NOTHING_LOST)} == {"small"}
    assert unmeasured(prices, {}) == ["left out, as nothing says how much they do: big; --measured 'NAME=RATE'"]
    found = plans(100_000, prices, 500, {"big": 50_000}, NOTHING_LOST)
    assert [each.name for each in found] == ["there, big", "there, small, spot", "there, small"]
    assert unmeasured(prices, {"big": 1, "bgi": 2}) == ["--measured bgi: the prices have no such size"]


def test_the_example_of_prices_is_whole_dated_and_says_that_it_is_to_be_checked() -> None:
    prices = read_prices(EXAMPLE)
    assert (
        {size.service for size in prices.sizes}
        == set(prices.services)
        == {"AKS", "Azure ML endpoint", "Container Apps"}
    )
    assert any(size.gpu for size in prices.sizes)
    assert any(size.spot_share for size in prices.sizes)
    assert prices.as_of
    assert "CHECK EVERY PRICE BEFORE USE" in EXAMPLE.read_text()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"sizes": []}, "sizes"),
        ({"services": {}}, "AKS is not among the services"),
        ({"transfer_per_gb": -1}, "transfer_per_gb: -1"),
        ({"transfer_per_gb": float("nan")}, "transfer_per_gb: nan is no number"),
        ({"prices": 1}, "'prices' was unexpected"),
    ],
)
def test_faults_of_a_price_file_are_told_with_their_place(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(EXAMPLE.read_text()) | change))
    with pytest.raises(UserError, match=fault):
        read_prices(path)


def test_a_date_in_the_price_file_may_be_a_date(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(EXAMPLE.read_text().replace("as_of: 2025", "as_of: 2026-11-25"))
    assert read_prices(path).as_of == "2026-11-25"


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"summary": 1}', json.dumps(REPORT | {"cpu_s_per_1000": {}}), NOT_A_NUMBER]
)
def test_what_is_no_load_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match="is no load report"):
        read_report(tmp_path)


def test_a_report_with_repeats_or_errors_is_told_of() -> None:
    summary, options = REPORT["summary"] | {"errors": 3}, REPORT["options"] | {"repeats": "0.3"}
    warnings = from_report("r", REPORT | {"summary": summary, "options": options}).warnings
    assert any("3 requests" in each for each in warnings)
    assert any("30%" in each for each in warnings)


def test_the_command_answers_which_one_at_each_rate_and_writes_a_page(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    page = tmp_path / "cost.html"
    done = CliRunner().invoke(main, ["cost", "plan", str(tmp_path), "--html", str(page), "--json"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    first = {each["rate"]: each for each in reversed(content["plans"])}
    assert set(first) == {10, 100, 1000, 100_000}
    assert all(
        first[rate]["hourly"] == min(e["hourly"] for e in content["plans"] if e["rate"] == rate) for rate in first
    )
    assert "check every price before use" in done.stderr
    text = page.read_text()
    assert "<svg" in text
    assert "machines  = the most of" in text
    assert "http" not in text.split("<svg")[0], "it fetches nothing"


@pytest.mark.parametrize("measured", ["T4", "T4=", "=5", "T4=-1", "T4=nan", "T4=inf"])
def test_a_measured_rate_without_sense_is_misuse(tmp_path: Path, measured: str) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    assert CliRunner().invoke(main, ["cost", "plan", str(tmp_path), "--measured", measured]).exit_code == 2


@pytest.mark.parametrize(
    "option", ["--rate=nan", "--rate=inf", "--cached=nan", "--answer-bytes=inf", "--utilisation=0"]
)
def test_numbers_without_sense_are_misuse(tmp_path: Path, option: str) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    assert CliRunner().invoke(main, ["cost", "plan", str(tmp_path), option]).exit_code == 2


def test_usage_is_told_by_who_used_most() -> None:
    found = ordered([Usage("a", "1", 10, 1.0), Usage("b", "1", 5, 7200.0)])
    assert [each.model for each in found] == ["b", "a"]
    assert found[0].cost(0.05) == pytest.approx(0.1)


def test_two_sources_of_usage_are_misuse(tmp_path: Path) -> None:
    arguments = ["cost", "usage", "--state", str(tmp_path)]
    assert CliRunner().invoke(main, [*arguments, "--log", "--prometheus", "http://x"]).exit_code == 2
    assert CliRunner().invoke(main, [*arguments, "--since", "yesterday"]).exit_code == 2
    assert CliRunner().invoke(main, arguments).exit_code == 1
