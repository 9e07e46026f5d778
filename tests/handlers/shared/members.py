"""Unpacked archives of tiny versions, as a shared worker finds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from marctl_handlers.core.messages import Reply, Request
from marctl_handlers.shared.host import Host
from marctl_handlers.shared.members import MEMBERS_FILE, Member
from marctl_handlers.shared.settings import SharedSettings

CODE = {"marctl_handlers/entry.py": "0" * 64}
"""Stands for the handler code of an archive."""
TASK = """from __future__ import annotations
import time
import msgspec
import numpy as np
from marctl_handlers import Task

class Text(msgspec.Struct):
    text: str

class Size(msgspec.Struct):
    size: int
    of: str

class Sized(Task[Text, Size]):
    def load(self, folder):
        self.name = (folder / "name.txt").read_text()
        self.weights = np.load(folder / "weights.npy")
        LOADING

    def predict(self, questions, deadline):
        PREDICTING
        return [Size(len(q.text), self.name) for q in questions]
"""


def write_member(
    folder: Path,
    model: str,
    version: str = "1.0",
    *,
    loading: str = "pass",
    predicting: str = "pass",
    megabytes: float = 0.01,
    code: dict[str, str] = CODE,
    sample: dict[str, Any] | None = None,
    task: str = TASK,
) -> Member:
    """A version of a task of its own; `loading` and `predicting` are a line of its code each."""
    import numpy as np

    root = folder / f"{model}-{version}"
    (root / "model").mkdir(parents=True)
    (root / "task.py").write_text(task.replace("LOADING", loading).replace("PREDICTING", predicting))
    (root / "model" / "name.txt").write_text(model)
    np.save(root / "model" / "weights.npy", np.ones(round(megabytes * (1 << 20) / 8)))
    (root / "model-config.yaml").write_text(yaml.safe_dump({"minWorkers": 1, "handler": {"task": "own"}}))
    expected = sample or {"request": {"text": "abc"}, "expected": {"size": 3, "of": model}}
    (root / "samples.json").write_text(json.dumps([expected]))
    (root / "metadata.json").write_text(json.dumps({"model": model, "version": version, "files": code}))
    return Member(model, version, hashlib.sha256(f"{model} {version}".encode()).hexdigest(), str(root))


def write_list(root: Path, members: Sequence[Member]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "metadata.json").write_text(json.dumps({"files": CODE}))
    rows = [{name: getattr(member, name) for name in member.__struct_fields__} for member in members]
    partial = root / "list.partial"
    partial.write_text(json.dumps(rows))
    partial.replace(root / MEMBERS_FILE)


def a_host(folder: Path, members: Sequence[Member], **settings: Any) -> Host:
    """Waits for every load unless told otherwise."""
    write_list(folder / "worker", members)
    return Host(folder / "worker", SharedSettings(**{"cold_wait_ms": 20_000, "memory_mb": 64, **settings}))


def asking(name: str, text: str = "hello", **headers: str) -> Request:
    """A question to `model/version`."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return Request(json.dumps({"text": text}).encode(), f"to {name}", headers={"url_path": name, **named})


def ask(host: Host, *names: str) -> list[tuple[int, Any]]:
    return [told(reply) for reply in host.answer([asking(name) for name in names])]


def told(reply: Reply) -> tuple[int, Any]:
    return reply.code, json.loads(reply.body)
