"""The manifests of docker/kubernetes as `kubectl kustomize` renders them."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.prometheus_server import DOCKER

FOLDER = DOCKER / "kubernetes"
OVERLAYS = ("cpu", "gpu", "aks", "laptop")
Manifest = dict[str, Any]


def render(folder: Path) -> list[Manifest]:
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


@cache
def overlay(name: str) -> tuple[Manifest, ...]:
    return tuple(render(FOLDER / "overlays" / name))


def overlay_with(folder: Path, name: str, **further: Any) -> list[Manifest]:
    """An overlay on top of a project's one, in a folder of its own."""
    content = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    base = os.path.relpath(FOLDER / "overlays" / name, folder.resolve())
    components = [os.path.relpath(FOLDER / "components" / each, folder.resolve()) for each in further.pop("parts", [])]
    whole = {**content, "resources": [base], "components": components, **further}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(whole))
    return render(folder)


def the(manifests: list[Manifest] | tuple[Manifest, ...], kind: str) -> Manifest:
    """The only one of its kind."""
    [found] = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def kinds(manifests: list[Manifest] | tuple[Manifest, ...]) -> set[str]:
    return {manifest["kind"] for manifest in manifests}


def pod_of(manifests: list[Manifest] | tuple[Manifest, ...]) -> Manifest:
    """The Deployment's pod."""
    spec: Manifest = the(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def container_of(manifests: list[Manifest] | tuple[Manifest, ...]) -> Manifest:
    [container] = pod_of(manifests)["containers"]
    found: Manifest = container
    return found
