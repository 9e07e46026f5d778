"""A real Prometheus, of the system or of the environment (scripts/environment.sh), over the project's own rules."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from marctl.stack.ports import free_port

DOCKER = Path(__file__).parents[1] / "docker"
SCRAPE_S = 2
START_TIMEOUT_S = 30.0


def program(name: str) -> str:
    """prometheus or promtool. Without them a test is skipped, but not where everything must run."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"{name} is not installed; scripts/test.sh fetches it, so does apt-get install prometheus")
    assert found, f"{name} is not installed"
    return found


class Prometheus:
    """Scrapes one stack every two seconds. Rules wait for a second where they would wait for minutes."""

    def __init__(self, folder: Path, target: str) -> None:
        folder.mkdir()
        config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {
            "scrape_interval": f"{SCRAPE_S}s",
            "scrape_timeout": f"{SCRAPE_S}s",
            "evaluation_interval": "1s",
        }
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / "rules").mkdir()
        for path in (DOCKER / "prometheus" / "rules").glob("*.yml"):
            (folder / "rules" / path.name).write_text(re.sub(r"\bfor: \w+", "for: 1s", path.read_text()))
        self.url = f"http://127.0.0.1:{free_port()}"
        options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        options += [f"--web.listen-address={self.url.removeprefix('http://')}", "--enable-feature=exemplar-storage"]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen([program("prometheus"), *options], stdout=log, stderr=log)
        self._wait_ready(folder / "log")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        return list(self._get("query", query=expression)["result"])

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        now = time.time()
        return list(self._get("query_exemplars", query=expression, start=now - 600, end=now))

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {each["labels"]["alertname"] for each in self._get("alerts")["alerts"] if each["state"] == "firing"}

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)

    def _get(self, path: str, **parameters: Any) -> Any:
        answer = requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def _wait_ready(self, log: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if requests.get(f"{self.url}/-/ready", timeout=1).status_code == 200:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.1)
        self._process.kill()
        raise AssertionError(f"Prometheus did not start: {log.read_text()[-2000:]}")
