"""Starts one contender, checks its answers, measures it, stops it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from loadtest.compare.contenders import SERVERS, Contender, Site
from loadtest.compare.environments import environment_python
from loadtest.generator import Generator, Target
from loadtest.processes import Usage
from loadtest.questions import Stream
from marctl.core.process import stop_tree
from marctl.stack.ports import free_port
from marctl_handlers.text.processor import Processor

START_TIMEOUT_S = 180.0
ASK_TIMEOUT_S = 30.0
KEPT = ("HOME", "LANG", "PATH", "JAVA_HOME", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Variables of the caller's; the last two let all servers alike do without some of the processor's instructions."""
ANSWER_TOLERANCE, MEAN_TOLERANCE = 0.1, 0.02
"""Of any probability against float32's, and of the mean question's furthest one. Seen: bfloat16 0.027 and 0.005, 8-bit
integers 0.051; a wrong tokenization or a wrong order of choices is beyond both."""


class StartFailed(Exception):
    """A server did not come up, or did not answer the first question."""


class WrongAnswer(Exception):
    """A server answers something else than the model says."""


@dataclass(frozen=True)
class Reference:
    """Questions, as request bodies, and plain transformers' probabilities in float32."""

    questions: Sequence[bytes]
    probabilities: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Model:
    """One version, as an archive and as a `save_pretrained` folder."""

    version: str
    archive: Path
    folder: Path
    recipe: Path


@dataclass(frozen=True)
class Plan:
    """How long, in seconds, and how many connections."""

    seconds: float = 20.0
    warm_up_s: float = 5.0
    single_s: float = 5.0
    connections: int = 64


@dataclass(frozen=True)
class Measured:
    """One contender in one round. Latencies in ms; processor seconds are the server's alone, per 1,000 requests."""

    rps: float
    p50_ms: float
    p99_ms: float
    cpu_s_per_1000: float
    errors: int
    single_p50_ms: float
    worst_deviation: float
    mean_deviation: float
    generator_cpu_s_per_1000: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(contender: Contender, model: Model, reference: Reference, stream: Stream, plan: Plan) -> Measured:
    """One round of one contender. Raises StartFailed, WrongAnswer or InstallFailed; nothing is left running."""
    wrapped = map(contender.wrap, stream)
    with started(contender, model) as (process, port):
        deviations = check_answers(contender, port, reference) if contender.has_model else [0.0]
        target = Target.of(f"http://127.0.0.1:{port}{contender.path}", contender.marker)
        Generator(target, wrapped).closed(plan.connections, plan.warm_up_s)
        usage = Usage(process)
        many = Generator(target, wrapped).closed(plan.connections, plan.seconds).summary()
        cpu_s = usage.look()["all"]
        n_answers = many["requests"] - many["errors"]
        if not n_answers:
            raise WrongAnswer(f"{contender.name}: no good answer under load, but {many['codes']}")
        single = Generator(target, wrapped).closed(1, plan.single_s).summary()
    return Measured(
        rps=many["rps"],
        p50_ms=many["p50_ms"],
        p99_ms=many["p99_ms"],
        cpu_s_per_1000=round(cpu_s / n_answers * 1000, 3),
        errors=many["errors"],
        single_p50_ms=single["p50_ms"],
        worst_deviation=round(max(deviations), 4),
        mean_deviation=round(sum(deviations) / len(deviations), 4),
        generator_cpu_s_per_1000=many["generator_cpu_s_per_1000"],
    )


@contextmanager
def started(contender: Contender, model: Model) -> Iterator[tuple[psutil.Process, int]]:
    """The server's process and port, once it has answered; stopped at the end of the block, with all it started."""
    python = environment_python(contender.name, contender.packages, contender.sitecustomize)
    with tempfile.TemporaryDirectory(prefix="cmp-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        site = Site(folder, model.archive, model.folder, python, free_port(), model.recipe)
        with (folder / "output.log").open("wb") as log:
            server = subprocess.Popen(
                contender.command(site),
                cwd=site.working_folder,
                env=environment(site, contender),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that the terminal's Ctrl-C reaches this process alone
            )
        process = psutil.Process(server.pid)
        try:
            wait_ready(contender, site, server, folder / "output.log")
            yield process, site.port
        finally:
            stop_tree(process)
            server.wait()


def environment(site: Site, contender: Contender) -> dict[str, str]:
    """Little of the caller's: one thread, no network, the place of the model and the port."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    kept["PATH"] = f"{site.python.parent}:{kept.get('PATH', os.defpath)}"
    numbers = Processor.here().numbers("auto")
    ours = {
        "MODEL_FOLDER": str(site.model_folder),
        "NUMBERS": numbers,
        "PORT": str(site.port),
        "PYTHONPATH": str(SERVERS),
    }
    ours |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    ours |= {"TMPDIR": str(site.folder), "LOG_LOCATION": str(site.folder), "METRICS_LOCATION": str(site.folder)}
    if not contender.packages:
        ours.pop("PYTHONPATH")
    return kept | ours | contender.environ


def wait_ready(contender: Contender, site: Site, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until a question is answered; raises StartFailed with the log's last lines."""
    body = contender.wrap(b'{"question": "Which of these is a fruit?", "choices": ["an apple", "a hammer"]}')
    deadline = time.monotonic() + START_TIMEOUT_S
    reason = "nobody listens"
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise StartFailed(f"{contender.name} ended with exit code {server.returncode}: {last_lines(log)}")
        with suppress(OSError, http.client.HTTPException):
            code, answer = post(site.port, contender.path, body)
            if code == 200:
                return
            reason = f"{code} {answer[:200]!r}"
        time.sleep(0.3)
    raise StartFailed(f"{contender.name} did not answer in {START_TIMEOUT_S:.0f} s ({reason}): {last_lines(log)}")


def post(port: int, path: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_TIMEOUT_S)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def check_answers(contender: Contender, port: int, reference: Reference) -> list[float]:
    """Each question's largest deviation of a probability from the reference. Raises WrongAnswer."""
    found = []
    for body, expected in zip(reference.questions, reference.probabilities, strict=True):
        code, content = post(port, contender.path, contender.wrap(body))
        if code != 200:
            raise WrongAnswer(f"{contender.name}: {code} {content[:200]!r} to {body!r}")
        try:
            given = contender.unwrap(content)["probabilities"]
        except (ValueError, KeyError, IndexError, TypeError) as err:
            raise WrongAnswer(f"{contender.name}: cannot read {content[:200]!r}") from err
        deviation = max((abs(a - b) for a, b in zip(given, expected, strict=True)), default=1.0)
        if deviation > ANSWER_TOLERANCE:
            raise WrongAnswer(f"{contender.name}: {given} to {json.loads(body)}, expected {expected}")
        found.append(deviation)
    if sum(found) / len(found) > MEAN_TOLERANCE:
        raise WrongAnswer(f"{contender.name}: probabilities are off by {sum(found) / len(found):.3f} on average")
    return found


def last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-4:]) or "no output"
