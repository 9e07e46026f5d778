"""A stack under load while it is changed and while its processes are killed, at random moments from a seed.

    python -m loadtest.chaos --changes 200 --seed 1

Each round declares one change (register, unregister, scale, default, split, fallback, rollback) and, at a random moment
of it, ends one process with SIGKILL: the reconciler, the command itself, Envoy, Redis, a worker, or TorchServe. The
reconciler is `marctl up` in the foreground, and is started again when it ends, as a service manager would do. Then the
stack must come to the declared state by itself: the versions, workers and default that TorchServe tells, and the shares
that the gateway gives, are compared with the document, and the history is verified.

Versions are archives of a few hundred bytes that answer a constant. One JSON line at the end: rounds by what was
killed, the requests by outcome and by what had been killed last, and, from before the load, the reconciler's
processor time at rest and the time from a change of the split to its effect.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import psutil
import requests

from loadtest.stack import MARCTL, PROJECT, cpu_seconds
from marctl.stack.document import Document
from marctl.stack.history import NOTHING
from marctl.stack.look import Stack
from marctl.stack.operations import Operator, change_traffic
from marctl.stack.state import State
from tests.tiny_archives import REQUEST, tiny_archive

SETTLE_TIMEOUT_S = 90.0
COMMAND_TIMEOUT_S = 120.0
LATEST_KILL_S = 2.0
"""After the beginning of a change, which takes one to three seconds."""
CLIENTS = 16
REST_S, REST_CHANGES = 20.0, 21
KEPT, SPARE = ("1.0", "2.0"), ("3.0", "4.0")
DETAIL_CHARACTERS = 80
VICTIMS = ("nothing", "reconciler", "command", "envoy", "redis", "worker", "torchserve")


@dataclass
class Clients:
    """Asks at a steady rate, whatever the answers; each request is kept with its times and its outcome."""

    url: str
    rate: float
    outcomes: list[tuple[float, float, str]] = field(default_factory=list)
    """Sent, answered, and `200`, or another code with its reason, or the exception's name."""
    ending: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        began = time.monotonic()
        self.threads = [threading.Thread(target=self._ask, args=(began, i), daemon=True) for i in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.ending.set()
        for thread in self.threads:
            thread.join(60)

    def _ask(self, began: float, number: int) -> None:
        due = began + number / self.rate
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=40)
        body, head = json.dumps(REQUEST), {"content-type": "application/json", "x-user-id": f"user-{number}"}
        while not self.ending.wait(max(0.0, due - time.monotonic())):
            sent = time.monotonic()
            try:
                connection.request("POST", "/predictions/mcqa", body, head)
                answer = connection.getresponse()
                content = answer.read()
                outcome = "200" if answer.status == 200 else f"{answer.status} {detail_of(content)}"
            except (OSError, http.client.HTTPException) as err:
                connection.close()
                outcome = type(err).__name__
            self.outcomes.append((sent, time.monotonic(), outcome))
            due = max(due + CLIENTS / self.rate, time.monotonic() - 1)


def detail_of(content: bytes) -> str:
    """Why an answer is an error, without the numbers that differ from one to the next."""
    try:
        detail = str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        detail = content.decode(errors="replace")
    return re.sub(r"[0-9]+(\.[0-9]+)?", "N", detail)[:DETAIL_CHARACTERS]


class Keeper(threading.Thread):
    """Keeps a `marctl up` in the foreground: started again whenever it ends."""

    def __init__(self, state: Path, command: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self.command = [*MARCTL, *command, "--state", str(state)]
        self.log = state.parent / "up.log"
        self.ending = threading.Event()
        self.starts = 0

    def run(self) -> None:
        while not self.ending.is_set():
            self.starts += 1
            with self.log.open("ab") as log:
                subprocess.run(self.command, cwd=PROJECT, stdout=log, stderr=log, check=False)
            time.sleep(0.2)


@dataclass
class Chaos:
    """One run on one stack."""

    folder: Path
    draw: random.Random
    victims: Sequence[str] = VICTIMS
    killed: list[tuple[float, str]] = field(default_factory=list)
    """When, and what, during which change."""
    not_reached: list[str] = field(default_factory=list)
    settle_s: list[float] = field(default_factory=list)

    @property
    def state(self) -> State:
        return State(self.folder / "state")

    def at_rest(self) -> dict[str, float]:
        """Before the load: the reconciler's processor time, and how long a change takes until it is in force."""
        found = self.state.reconciler()
        assert found is not None
        process = psutil.Process(found.pid)
        before, began = cpu_seconds(process), time.monotonic()
        time.sleep(REST_S)
        share = (cpu_seconds(process) - before) / (time.monotonic() - began)
        operator = Operator(self.state, "chaos at rest", lambda _: None)
        seconds = []
        for i in range(REST_CHANGES):
            began = time.monotonic()
            change_traffic(operator, "mcqa", {"split": {"1.0": 1 + i, "2.0": 1}})
            seconds.append(time.monotonic() - began)
        return {"reconciler_cpu_at_rest": round(share, 4), "change_to_effect_ms": round(1000 * median(seconds), 1)}

    def round(self, number: int) -> None:
        """One change, one kill, and the wait for what is declared."""
        words = self.change()
        victim = self.draw.choice(self.victims)
        command = subprocess.Popen(
            [*MARCTL, *words, "--state", str(self.state.folder)],
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(self.draw.uniform(0, LATEST_KILL_S))
        self.killed.append((time.monotonic(), f"{victim}, {' '.join(words[: 2 if words[0] == 'route' else 1])}"))
        self.kill(victim, command.pid)
        try:
            _, errors = command.communicate(timeout=COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            command.kill()
            errors = "no answer"
            command.communicate()
        began = time.monotonic()
        faults = self.settled()
        self.settle_s.append(time.monotonic() - began)
        last = errors.strip().splitlines()[-1:] or [""]
        tell(f"{number}: {' '.join(words)}; killed {victim}; code {command.returncode} {last[0][:150]}")
        if faults:
            self.not_reached.append(f"round {number}, {words}, killed {victim}: {faults}")
            tell(f"  NOT REACHED: {faults}")

    def change(self) -> list[str]:
        """A command that makes sense for what is declared now."""
        document = self.state.history.current().document
        model = document.models["mcqa"]
        there, draw = sorted(model.versions), self.draw
        missing = [version for version in SPARE if version not in there]
        kinds: list[Callable[[], list[str]]] = [
            lambda: ["scale", "mcqa", draw.choice(there), str(draw.choice((1, 2)))],
            lambda: ["default", "mcqa", draw.choice(there)],
            lambda: ["route", "split", "mcqa", *(f"{v}={draw.randint(1, 9)}" for v in draw.sample(there, 2))],
            lambda: ["route", "fallback", "mcqa", draw.choice(there)],
            lambda: ["rollback"],
        ]
        if missing:
            kinds += [lambda: ["register", str(self.folder / f"mcqa-{draw.choice(missing)}.mar")]] * 2
        spare = [version for version in SPARE if version in there and version != model.default]
        if spare:
            kinds += [lambda: ["unregister", "mcqa", draw.choice(spare), "--force"]] * 2
        return draw.choice(kinds)()

    def kill(self, victim: str, command: int) -> None:
        pid = self.pid_of(victim, command)
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pid_of(self, victim: str, command: int) -> int | None:
        if victim == "command":
            return command
        if victim == "reconciler":
            found = self.state.reconciler()
            return found.pid if found else None
        running = self.state.running()
        if running is None:
            return None
        if victim == "envoy":
            return running.gateway.pid if running.gateway else None
        if victim == "redis":
            return running.redis.pid if running.redis else None
        if victim == "torchserve":
            return running.server.pid if running.server else None
        workers = [
            p.pid
            for p in psutil.process_iter(["cmdline"])
            if any(word.startswith(f"{running.temp}/.ts.sock.") for word in p.info["cmdline"] or [])
        ]
        return self.draw.choice(sorted(workers)) if victim == "worker" and workers else None

    def settled(self) -> str:
        """Wait until all is as declared; what is not after the time is up, empty if everything is."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        faults = "never looked"
        while time.monotonic() < deadline:
            faults = self.faults()
            if not faults:
                return "; ".join(self.state.history.verify())
            time.sleep(0.2)
        return faults

    def faults(self) -> str:
        """How what runs differs from what is declared."""
        try:
            now, status = self.state.history.current(), self.state.status()
            if now == NOTHING or status.observed != now.revision or status.conditions or not self.state.reconciler():
                return f"revision {now.revision}, observed {status.observed}, conditions {status.conditions}"
            stack = Stack.open(self.state)
            found = {s.version: (s.asked, s.ready) for s in stack.management.versions("mcqa")}
            declared = {v: (c.workers, c.workers) for v, c in now.document.models["mcqa"].versions.items()}
            if found != declared:
                return f"TorchServe has {found}, declared is {declared}"
            if stack.management.default_version("mcqa") != now.document.models["mcqa"].default:
                return "TorchServe has another default"
            return self.traffic_faults(now.document, stack.running.predictions)
        except Exception as err:
            return f"{type(err).__name__}: {err}"

    def traffic_faults(self, document: Document, url: str) -> str:
        """Whether requests go to the versions that the policy names, and to no others."""
        split = {version for version, weight in document.models["mcqa"].policy.split.items() if weight}
        seen = set()
        for _ in range(40):
            answer = requests.post(f"{url}/predictions/mcqa", json=REQUEST, timeout=30)
            seen.add(answer.headers.get("x-model-version", str(answer.status_code)))
        return "" if seen <= split else f"answers come from {sorted(seen)}, the split is {sorted(split)}"

    def blame(self, clients: Clients) -> dict[str, Counter[str]]:
        """Requests that failed, by what was killed last before they were answered, during which change."""
        found: dict[str, Counter[str]] = {}
        for _, answered, outcome in clients.outcomes:
            if outcome != "200":
                causes = [what for at, what in self.killed if at <= answered]
                found.setdefault(causes[-1] if causes else "nothing", Counter())[outcome] += 1
        return found


def tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3600.0, help="no further change after so long")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", nargs="+", choices=VICTIMS, default=VICTIMS, help="what is killed; by default, all")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        for version in KEPT:
            tiny_archive(folder / "store", version=version)
        for version in SPARE:
            tiny_archive(folder, version=version)
        chaos = Chaos(folder, random.Random(asked.seed), asked.kill)
        ports = [f"--{kind}=0" for kind in ("gateway-port", "port", "management-port", "metrics-port")]
        up = ["up", "--recipes", str(folder / "none"), "--store", str(folder / "store"), *ports]
        keeper = Keeper(chaos.state.folder, up)
        keeper.start()
        try:
            if faults := chaos.settled():
                raise SystemExit(f"error: the stack does not start: {faults}; see {keeper.log}")
            running = chaos.state.running()
            assert running is not None
            rest = chaos.at_rest()
            result = rest | run(chaos, Clients(running.predictions, asked.rate), asked)
        finally:
            keeper.ending.set()
            subprocess.run([*MARCTL, "down", "--state", str(chaos.state.folder)], cwd=PROJECT, check=False)
    print(json.dumps(result | {"starts_of_the_reconciler": keeper.starts}))
    return 1 if result["not_reached"] else 0


def run(chaos: Chaos, clients: Clients, asked: argparse.Namespace) -> dict[str, Any]:
    clients.start()
    began = time.monotonic()
    rounds = 0
    while rounds < asked.changes and time.monotonic() - began < asked.seconds:
        rounds += 1
        chaos.round(rounds)
    clients.stop()
    latencies = sorted(answered - sent for sent, answered, outcome in clients.outcomes if outcome == "200")
    return {
        "rounds": rounds,
        "seed": asked.seed,
        "seconds": round(time.monotonic() - began),
        "killed": Counter(what.partition(",")[0] for _, what in chaos.killed),
        "not_reached": chaos.not_reached,
        "median_settle_s": round(median(chaos.settle_s), 2),
        "slowest_settle_s": round(max(chaos.settle_s), 2),
        "revisions": chaos.state.history.current().revision,
        "history_faults": chaos.state.history.verify(),
        "requests": len(clients.outcomes),
        "outcomes": Counter(outcome for _, _, outcome in clients.outcomes),
        "failed_by_what_was_killed": chaos.blame(clients),
        "p50_ms": round(1000 * latencies[len(latencies) // 2], 1),
        "p999_ms": round(1000 * latencies[int(len(latencies) * 0.999)], 1),
        "slowest_ms": round(1000 * latencies[-1]),
    }


if __name__ == "__main__":
    raise SystemExit(main())
