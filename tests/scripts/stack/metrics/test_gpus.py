"""The tool's answers are those of its documentation; a machine with a GPU runs the tool itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from marctl.stack.metrics.gpus import Gpus, names_of_gpus


def tool(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nvidia-smi of this test."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def figures() -> dict[str, list[tuple[dict[str, str], float]]]:
    return {family.name: [(sample.labels, sample.value) for sample in family.samples] for family in Gpus().collect()}


def test_each_gpu_is_told_in_base_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, 'echo "0, 87, 1024, 81559, 310.5, 61"; echo "1, 0, 0, 81559, [N/A], 30"', monkeypatch)
    found = figures()
    assert found["marctl_gpus"] == [({}, 2)]
    assert found["marctl_gpu_utilization_ratio"] == [({"gpu": "0"}, pytest.approx(0.87)), ({"gpu": "1"}, 0)]
    assert found["marctl_gpu_memory_used_bytes"][0] == ({"gpu": "0"}, 1 << 30)
    assert found["marctl_gpu_power_watts"] == [({"gpu": "0"}, 310.5)]


@pytest.mark.parametrize("script", ["exit 9", "echo No devices were found", "exec sleep 60"])
def test_without_gpus_there_are_none(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, script, monkeypatch)
    assert figures() == {"marctl_gpus": [({}, 0)]}


def test_without_the_tool_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert figures() == {"marctl_gpus": [({}, 0)]}


def test_gpus_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, 'echo "0, NVIDIA H100 80GB HBM3"; echo "1, NVIDIA L4"', monkeypatch)
    assert names_of_gpus() == ["NVIDIA H100 80GB HBM3", "NVIDIA L4"]
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert names_of_gpus() == []
