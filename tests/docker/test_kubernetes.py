"""The manifests are valid, hold together, and say what the stack itself says."""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from marctl.cli import main
from marctl.gateway.settings import read_settings
from marctl.stack import document
from marctl.stack.up import STOP_TIMEOUT_S
from tests.kubernetes_manifests import (
    FOLDER,
    OVERLAYS,
    Manifest,
    container_of,
    kinds,
    overlay,
    overlay_with,
    pod_of,
    render,
    the,
)
from tests.kubernetes_schemas import LATEST, OLDEST, faults
from tests.prometheus_server import DOCKER, program

everywhere = pytest.mark.parametrize("name", OVERLAYS)
SELECTED = {"app.kubernetes.io/name": "marctl"}


@everywhere
@pytest.mark.parametrize("version", [OLDEST, LATEST])
def test_every_manifest_is_valid(name: str, version: str) -> None:
    assert [fault for manifest in overlay(name) for fault in faults(manifest, version)] == []


@pytest.mark.parametrize("part", ["keda", "archives", "gpu", "signed"])
def test_an_overlay_with_a_further_component_is_valid(part: str, tmp_path: Path) -> None:
    made = overlay_with(tmp_path, "aks", parts=[part])
    assert [fault for manifest in made for fault in faults(manifest, LATEST)] == []
    assert kinds(made) >= {"Deployment", "Service", "NetworkPolicy"}


@pytest.mark.parametrize(
    ("kind", "expected"), [("Deployment", 3), ("ServiceMonitor", 3), ("PrometheusRule", 3), ("NetworkPolicy", 3)]
)
def test_all_faults_of_a_manifest_are_told(kind: str, expected: int) -> None:
    """Or the tests above could not fail."""
    broken = yaml.safe_load(yaml.safe_dump(the(overlay("cpu"), kind)))
    broken["spec"]["unknown"] = 1
    broken["metadata"]["name"] = 7
    broken["metadta"] = {}
    assert len(faults(broken, LATEST)) == expected


# A stop and a rolling update


@everywhere
def test_a_pod_drains_until_it_is_out_of_service_and_has_the_time_that_an_orderly_stop_may_take(name: str) -> None:
    container, probe = container_of(overlay(name)), container_of(overlay(name))["readinessProbe"]
    *command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == ["marctl", "drain", "--seconds"]
    assert parsed(["drain", "--seconds", seconds])["seconds"] == float(seconds)
    unready_s = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert float(seconds) >= 2 * unready_s
    assert pod_of(overlay(name))["terminationGracePeriodSeconds"] >= float(seconds) + STOP_TIMEOUT_S


@everywhere
def test_a_new_pod_is_ready_before_an_old_one_goes(name: str) -> None:
    strategy = the(overlay(name), "Deployment")["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


@everywhere
def test_probes_ask_the_gateways_probe_port(name: str) -> None:
    container = container_of(overlay(name))
    paths = {
        probe: container[f"{probe}Probe"]["httpGet"] | {"ok": True} for probe in ("startup", "readiness", "liveness")
    }
    assert {probe: get["path"] for probe, get in paths.items()} == {
        "startup": "/healthz",
        "readiness": "/ready",
        "liveness": "/healthz",
    }
    assert {get["port"] for get in paths.values()} == {"probes"}


# What the container is given


def parsed(words: list[str]) -> dict[str, Any]:
    """What `marctl` understands of a command line."""
    command = main.get_command(click.Context(main), words[0])
    assert command is not None
    return command.make_context(words[0], list(words[1:])).params


@everywhere
def test_the_command_line_is_understood_and_its_files_are_mounted(name: str, tmp_path: Path) -> None:
    container, pod = container_of(overlay(name)), pod_of(overlay(name))
    settings = tmp_path / "gateway.yaml"
    settings.touch()
    words = [word.replace("/etc/marctl/gateway/gateway.yaml", str(settings)) for word in container["args"]]
    assert (words[0], str(settings) in " ".join(words)) == ("up", True)
    options = parsed([word.replace("$(POD_NAME)", "marctl-5d8-x2x") for word in words])
    assert (options["follow"], options["node"]) == ("/etc/marctl/state/state.yaml", "marctl-5d8-x2x")
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    for folder in ("/etc/marctl/state", "/etc/marctl/gateway"):
        assert "subPath" not in mounts[folder], "a file mounted by subPath never changes"
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}


@everywhere
def test_the_ports_of_the_gateways_settings_are_the_containers(name: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_bytes(base64.b64decode(the(overlay(name), "Secret")["data"]["gateway.yaml"]))
    settings = read_settings(path)
    ports = {port["name"]: port["containerPort"] for port in container_of(overlay(name))["ports"]}
    assert ports == {"gateway": 8000, "probes": settings.probe_port, "metrics": settings.metrics_port}
    assert settings.address == "0.0.0.0"
    assert not settings.api_keys, "keys are no part of the project"
    service = {port["name"]: port["targetPort"] for port in the(overlay(name), "Service")["spec"]["ports"]}
    assert service == {"http": "gateway", "metrics": "metrics"}


@everywhere
def test_the_declared_state_is_a_document_and_changes_in_place(name: str) -> None:
    content = the(overlay(name), "ConfigMap")
    document.parse(content["data"]["state.yaml"], name)
    [volume] = [volume for volume in pod_of(overlay(name))["volumes"] if "configMap" in volume]
    assert volume["configMap"]["name"] == content["metadata"]["name"] == "state"


def test_another_state_and_other_keys_reach_the_pods_that_run(tmp_path: Path) -> None:
    """Neither changes what the Deployment names, so nothing is replaced."""
    (tmp_path / "state.yaml").write_text("models: {}\nshared: {workers: 2}\n")
    (tmp_path / "gateway.yaml").write_text("address: 0.0.0.0\nprobe_port: 8001\napi_keys: {ann: secret}\n")
    state = [{"name": "state", "behavior": "replace", "files": ["state.yaml"]}]
    gateway = [{"name": "gateway", "behavior": "replace", "files": ["gateway.yaml"]}]
    changed = overlay_with(tmp_path, "cpu", namespace="marctl", configMapGenerator=state, secretGenerator=gateway)
    assert "workers: 2" in the(changed, "ConfigMap")["data"]["state.yaml"]
    assert b"ann" in base64.b64decode(the(changed, "Secret")["data"]["gateway.yaml"])
    assert the(changed, "Deployment") == the(overlay("cpu"), "Deployment")


def test_trusted_keys_are_those_of_the_overlay_and_the_option_for_them_is_understood(tmp_path: Path) -> None:
    (tmp_path / "alice.pub").write_text("a key")
    keys = [{"name": "trusted-keys", "files": ["alice.pub"], "options": {"disableNameSuffixHash": True}}]
    made = overlay_with(tmp_path, "cpu", parts=["signed"], namespace="marctl", configMapGenerator=keys)
    [content] = [each for each in made if each["kind"] == "ConfigMap" and each["metadata"]["name"] == "trusted-keys"]
    assert content["data"] == {"alice.pub": "a key"}
    container = container_of(made)
    assert container["args"][-1] == "--require-signed=/etc/marctl/keys"
    assert "/etc/marctl/keys" in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert parsed(["up", f"--require-signed={tmp_path}"])["require_signed"] == tmp_path


@everywhere
def test_secrets_come_from_secrets(name: str) -> None:
    named = {each["name"]: each for each in container_of(overlay(name))["env"]}
    reference = named["REDIS_URL"]["valueFrom"]["secretKeyRef"]
    assert (reference["name"], reference["key"]) == ("redis", "REDIS_URL")
    assert reference.get("optional", False) == (name != "aks")
    assert the(overlay(name), "ServiceAccount")["automountServiceAccountToken"] is False


# What the pod may do


@everywhere
def test_the_pod_is_confined(name: str) -> None:
    pod, container = pod_of(overlay(name)), container_of(overlay(name))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/var/lib/marctl", "/tmp"}
    assert not any("hostPath" in volume for volume in pod["volumes"])
    namespace = the(overlay(name), "Namespace")["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", ["cpu", "gpu", "aks"])
def test_only_the_ingress_reaches_the_gateway_only_prometheus_the_figures_and_pods_reach_redis_and_dns(
    name: str,
) -> None:
    spec = the(overlay(name), "NetworkPolicy")["spec"]
    assert spec["podSelector"] == {"matchLabels": SELECTED}
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert [port["port"] for rule in spec["ingress"] for port in rule["ports"]] == ["gateway", "metrics"]
    assert all(rule["from"] for rule in spec["ingress"])
    dns, redis = spec["egress"]
    assert dns["to"][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert {port["port"] for port in dns["ports"]} == {53}
    assert [port["port"] for port in redis["ports"]] == [10000 if name == "aks" else 6379]
    assert redis["to"]


# How many there are, and where


@pytest.mark.parametrize("name", ["cpu", "gpu", "aks"])
def test_there_are_three_pods_at_least_over_zones_and_one_at_most_is_taken_away(name: str) -> None:
    deployment, scaler = the(overlay(name), "Deployment"), the(overlay(name), "HorizontalPodAutoscaler")
    assert scaler["spec"]["minReplicas"] == 3
    assert "replicas" not in deployment["spec"], "an apply would set back what the autoscaler decided"
    zone, host = pod_of(overlay(name))["topologySpreadConstraints"]
    assert (zone["topologyKey"], zone["whenUnsatisfiable"]) == ("topology.kubernetes.io/zone", "DoNotSchedule")
    assert host["topologyKey"] == "kubernetes.io/hostname"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (deployment["spec"]["selector"], zone["labelSelector"], host["labelSelector"]):
        assert selector == {"matchLabels": SELECTED}
        assert selector["matchLabels"].items() <= labels.items()
    budget = the(overlay(name), "PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["selector"]) == (1, {"matchLabels": SELECTED})
    priority = the(overlay(name), "PriorityClass")["metadata"]["name"]
    assert pod_of(overlay(name))["priorityClassName"] == priority


@everywhere
def test_requests_and_limits_are_given_for_all_that_the_pod_uses(name: str) -> None:
    resources = container_of(overlay(name))["resources"]
    assert set(resources["requests"]) == {"cpu", "memory", "ephemeral-storage"}
    gpu = {"nvidia.com/gpu"} if name == "gpu" else set()
    assert set(resources["limits"]) == set(resources["requests"]) | gpu


def test_a_laptop_runs_one_pod_and_needs_no_operator() -> None:
    made = overlay("laptop")
    assert the(made, "Deployment")["spec"]["replicas"] == 1
    gone = {"HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor", "PrometheusRule"}
    assert not kinds(made) & gone


def adapter() -> dict[str, Manifest]:
    """Name of a metric to its rule."""
    content = yaml.safe_load((FOLDER / "components" / "monitoring" / "adapter.yaml").read_text())
    return {rule["name"]["as"]: rule for rule in content["rules"]["custom"]}


@pytest.mark.parametrize(("name", "holds"), [("cpu", "cpu"), ("aks", "cpu"), ("gpu", "marctl_gpu_utilization")])
def test_the_autoscaler_asks_for_queue_time_and_for_what_holds_the_number_of_pods(name: str, holds: str) -> None:
    metrics = the(overlay(name), "HorizontalPodAutoscaler")["spec"]["metrics"]
    asked = [each["pods"]["metric"]["name"] if each["type"] == "Pods" else each["resource"]["name"] for each in metrics]
    assert asked == ["marctl_queue_seconds", holds]
    assert {each for each in asked if each.startswith("marctl_")} <= set(adapter())


def test_keda_has_the_autoscalers_bounds_and_targets_and_takes_its_place(tmp_path: Path) -> None:
    scaler = the(overlay("cpu"), "HorizontalPodAutoscaler")["spec"]
    made = overlay_with(tmp_path, "cpu", parts=["keda"])
    assert "HorizontalPodAutoscaler" not in kinds(made)
    scaled = the(made, "ScaledObject")["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (scaler["minReplicas"], scaler["maxReplicas"])
    assert scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == scaler["behavior"]
    queue, cpu = scaled["triggers"]
    assert float(queue["metadata"]["threshold"]) * 1000 == float(
        scaler["metrics"][0]["pods"]["target"]["averageValue"].removesuffix("m")
    )
    assert int(cpu["metadata"]["value"]) == scaler["metrics"][1]["resource"]["target"]["averageUtilization"]


def asked_by_pod(name: str) -> str:
    """An adapter's query, as it is sent."""
    query: str = adapter()[name]["metricsQuery"]
    return query.replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="marctl",pod=~"a|b|c"')


def test_the_queries_of_the_adapter_and_of_keda_give_what_they_are_named_for(tmp_path: Path) -> None:
    """Pod a: 32 requests a second that wait 1/32 s, b: 8 that wait 1/8 s, c: none. GPUs of a: one half, one all."""
    keda = yaml.safe_load((FOLDER / "components" / "keda" / "scaledobject.yaml").read_text())["spec"]["triggers"][0]
    series = {
        'handler_stage_seconds_sum{stage="queue",namespace="marctl",pod="a",model="x"}': "0+15x40",
        'handler_stage_seconds_count{stage="queue",namespace="marctl",pod="a",model="x"}': "0+480x40",
        'handler_stage_seconds_sum{stage="queue",namespace="marctl",pod="b",model="x"}': "0+15x40",
        'handler_stage_seconds_count{stage="queue",namespace="marctl",pod="b",model="x"}': "0+120x40",
        'handler_stage_seconds_sum{stage="queue",namespace="marctl",pod="c",model="x"}': "0x40",
        'handler_stage_seconds_count{stage="queue",namespace="marctl",pod="c",model="x"}': "0x40",
        'handler_stage_seconds_sum{stage="total",namespace="marctl",pod="a",model="x"}': "0+900x40",
        'handler_stage_seconds_sum{stage="queue",namespace="other",pod="z",model="x"}': "0+900x40",
        'handler_stage_seconds_count{stage="queue",namespace="other",pod="z",model="x"}': "0+900x40",
        'marctl_gpu_utilization_ratio{namespace="marctl",pod="a",gpu="0"}': "0.5x40",
        'marctl_gpu_utilization_ratio{namespace="marctl",pod="a",gpu="1"}': "1x40",
    }
    expected = {
        asked_by_pod("marctl_queue_seconds"): {'{pod="a"}': 1 / 32, '{pod="b"}': 1 / 8, '{pod="c"}': 0},
        asked_by_pod("marctl_gpu_utilization"): {'{pod="a"}': 0.75},
        keda["metadata"]["query"]: {'{namespace="marctl"}': 2 / 40},
    }
    cases = [
        {"expr": expr, "eval_time": "8m", "exp_samples": [{"labels": k, "value": v} for k, v in found.items()]}
        for expr, found in expected.items()
    ]
    told = [{"series": name, "values": values} for name, values in series.items()]
    test = {"tests": [{"interval": "15s", "input_series": told, "promql_expr_test": cases}]}
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump(test))
    done = subprocess.run([program("promtool"), "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# One source


def test_the_operators_rules_are_those_of_prometheus() -> None:
    spec = importlib.util.spec_from_file_location("rules", FOLDER / "rules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text() == module.text(), "run python docker/kubernetes/rules.py"
    groups = the(overlay("cpu"), "PrometheusRule")["spec"]["groups"]
    sources = [yaml.safe_load(path.read_text())["groups"] for path in sorted(module.SOURCES.glob("*.yml"))]
    assert groups == [group for each in sources for group in each]


def test_the_figures_come_under_the_job_that_the_rules_name() -> None:
    monitor, service = the(overlay("cpu"), "ServiceMonitor"), the(overlay("cpu"), "Service")
    [job] = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == job["job_name"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


# The README


README = (FOLDER / "README.md").read_text()


@everywhere
def test_the_readmes_own_overlay_renders_with_ones_image_state_and_keys(name: str, tmp_path: Path) -> None:
    [text] = re.findall(r"^```yaml\n# deploy/kustomization.yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    project = os.path.relpath(FOLDER, tmp_path.resolve())
    text = text.replace("overlays/cpu", f"overlays/{name}")
    text = text.replace("../docker/kubernetes", project).replace("REGISTRY", "my.registry")
    (tmp_path / "kustomization.yaml").write_text(text)
    (tmp_path / "state.yaml").write_text("models: {}\nshared: {workers: 3}\n")
    (tmp_path / "gateway.yaml").write_text((FOLDER / "base" / "gateway.yaml").read_text() + "api_keys: {ann: secret}\n")
    made = render(tmp_path)
    assert [fault for manifest in made for fault in faults(manifest, LATEST)] == []
    assert container_of(made)["image"] == "my.registry/models:1"
    assert "workers: 3" in the(made, "ConfigMap")["data"]["state.yaml"]
    assert b"api_keys" in base64.b64decode(the(made, "Secret")["data"]["gateway.yaml"])


@pytest.mark.parametrize("line", [line for line in README.splitlines() if line.startswith("marctl ")])
def test_the_readmes_commands_are_understood(line: str, tmp_path: Path) -> None:
    (tmp_path / "state.yaml").touch()
    words = shlex.split(line.partition(">")[0].replace("deploy/state.yaml", str(tmp_path / "state.yaml")))[1:]
    command: click.Command | None = main
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(main), words.pop(0))
    assert command is not None
    command.make_context(command.name, words)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:overlays|components|base)/[\w/.-]+)`", README))))
def test_what_the_readme_names_is_there(path: str) -> None:
    assert (FOLDER / path).exists()
