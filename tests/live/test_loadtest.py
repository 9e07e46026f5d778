"""Load tests of a real stack, with thresholds and a report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import PROJECT, Site

pytestmark = pytest.mark.live

SHORT = ["--versions", "mcqa/1.10", "--seconds", "2", "--warm-up", "1", "--users", "4", "--ready", "2000"]


def load(site: Site, out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "loadtest.run", "--state", str(site.state), "--out", str(out), *SHORT, *options]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert (out / "report.json").exists(), done.stderr
    return done.returncode, json.loads((out / "report.json").read_text())


def test_a_run_within_its_thresholds_succeeds_and_says_what_everything_cost(site: Site, tmp_path: Path) -> None:
    limits = ["--min-rps", "5", "--max-p99-ms", "5000", "--max-errors", "0"]
    code, report = load(site, tmp_path, *limits)
    assert code == 0
    assert [check["holds"] for check in report["checks"]] == [True, True, True]
    served = sum(row["answers"] for row in report["seconds"])
    assert served == report["summary"]["requests"] > 15
    assert {"envoy", "java", "mcqa 1.10", "load generator"} <= set(report["cpu_s_per_1000"])
    assert all(report["cpu_s_per_1000"][name] > 0 for name in ("envoy", "java", "mcqa 1.10", "load generator"))
    assert sum(stage["ms"] for stage in report["stages"]) == pytest.approx(report["summary"]["mean_ms"], abs=0.1)
    assert report["gateway_requests"] == served  # an independent count of these requests and no others
    # Envoy rounds down to whole ms, and its histograms to the middle of buckets that are a tenth of their value wide.
    rounding_ms = 1 + 0.05 * report["summary"]["mean_ms"]
    assert min(stage["ms"] for stage in report["stages"]) > -rounding_ms, report["stages"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "src=" not in page  # nothing is fetched
    assert report["machine"]["commit"] in page


def test_a_missed_threshold_is_an_exit_code(site: Site, tmp_path: Path) -> None:
    code, report = load(site, tmp_path, "--no-gateway", "--rate", "50", "--shape", "spike", "--min-rps", "1000000")
    assert code == 1
    assert report["checks"][0]["holds"] is False
    # Four fifths of the time at a fifth of the rate.
    assert report["summary"]["requests"] == pytest.approx(2 * 50 * (0.2 + 0.8 * 0.2), rel=0.5)
