"""The alerts: each is tested to fire and to stay silent, and each has a section in the runbook whose commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from marctl.cli import main
from tests.prometheus_server import DOCKER, program

CASES = Path(__file__).parent / "rules"
RULES = sorted((DOCKER / "prometheus" / "rules").glob("*.yml"))
RUNBOOK = (DOCKER / "RUNBOOK.md").read_text()


def alerts() -> dict[str, dict[str, Any]]:
    """Name to rule."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def sections() -> dict[str, str]:
    """Anchor of a heading to its section."""
    parts = re.split(r"^## (\w+)$", RUNBOOK, flags=re.MULTILINE)
    return {name.lower(): text for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_rules_and_configuration_are_valid() -> None:
    for command in (
        ["check", "rules", *map(str, RULES)],
        ["check", "config", str(DOCKER / "prometheus/prometheus.yml")],
    ):
        done = subprocess.run([program("promtool"), *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_and_stays_silent() -> None:
    done = subprocess.run([program("promtool"), "test", "rules", *CASES.glob("*.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [
        case
        for path in CASES.glob("*.yml")
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alerts())
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(alerts())


@pytest.mark.parametrize("name", alerts())
def test_every_alert_has_its_section_in_the_runbook(name: str) -> None:
    rule = alerts()[name]
    file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert (DOCKER.parent / file).is_file()
    for word in ("**You see**", "**Why**", "**Do**", "marctl "):
        assert word in sections()[anchor]
    assert rule["labels"]["severity"] in ("page", "ticket")


def test_no_section_is_left_without_an_alert() -> None:
    assert set(sections()) == {rule["annotations"]["runbook_url"].partition("#")[2] for rule in alerts().values()}


COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"^```sh\n(.*?)^```$", RUNBOOK, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("marctl")
]


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_the_runbooks_commands_exist(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each is understood, options and all; none is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gateway.yaml").touch()
    (tmp_path / "model_store" / "archives").mkdir(parents=True)
    (tmp_path / "model_store" / "archives" / "mcqa-2.0.mar").touch()
    found: click.Command = main
    _, *words = shlex.split(command)
    context = click.Context(main, info_name="marctl")
    while isinstance(found, click.Group) and words and (child := found.get_command(context, words[0])):
        found, words = child, words[1:]
        context = click.Context(found, parent=context, info_name=found.name)
    assert found is not main, "there is no such command"
    found.make_context(found.name, words, parent=context.parent)
