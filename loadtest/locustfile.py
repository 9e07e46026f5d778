"""Locust users for a running stack. By hand:

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000                               with its web page
    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless -u 64 -t 60s --shape step

A user asks again as soon as it has its answer (a closed loop). Questions are encoded before the start.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Locust puts the file's own folder on the path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import requests
from locust import FastHttpUser, LoadTestShape, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.outcomes import NO_ANSWER, WRONG_BODY, Outcomes
from loadtest.questions import bodies
from loadtest.shapes import SHAPES, users_at

HEADERS = {"content-type": "application/json"}
STEADY_SPAWN_RATE = 100


class Run:
    """What all users of this process share."""

    def __init__(self) -> None:
        self.bodies: Iterator[Any] = iter(())  # of bytes, which Locust takes but does not declare
        self.target = ""
        self.outcomes = {"predict": Outcomes(), "explain": Outcomes()}
        self.started = 0.0
        self.cpu_before = 0.0


run = Run()


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("questions")
    group.add_argument("--model", default="mcqa", help="model to ask")
    group.add_argument("--model-version", default="", help="a certain version; else as the model's traffic says")
    group.add_argument("--seed", type=int, default=0, help="of the questions")
    group.add_argument("--questions", default="", metavar="FILE", help="JSONL, in place of made questions")
    group.add_argument("--repeats", type=float, default=0.0, help="share of requests that ask again what was asked")
    group.add_argument("--explain-share", type=float, default=0.0, help="share of users that ask for explanations")
    group.add_argument("--ready", type=int, default=50_000, help="requests encoded before the start")
    group.add_argument("--shape", choices=SHAPES, default="steady", help="of the number of users over time")
    group.add_argument("--outcomes", default="", metavar="FILE", help="write every second's figures as JSON")


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    asked: Any = environment.parsed_options
    file = Path(asked.questions) if asked.questions else None
    run.bodies = bodies(asked.seed, file, asked.repeats, asked.ready)
    run.target = asked.model + (f"/{asked.model_version}" if asked.model_version else "")
    if asked.explain_share:
        if asked.host:
            refuse_without_explanations(f"{asked.host}/explanations/{run.target}")
        PredictUser.weight = round((1 - asked.explain_share) * 1000)
        ExplainUser.weight = round(asked.explain_share * 1000)
    elif ExplainUser in environment.user_classes:
        environment.user_classes.remove(ExplainUser)


def refuse_without_explanations(url: str) -> None:
    """Ask once; ends Locust where nobody explains."""
    answer = requests.post(url, data=next(run.bodies), headers=HEADERS, timeout=60)
    if answer.status_code != 200:
        raise SystemExit(
            f"{url}: {answer.status_code} {answer.text[:300]}; --explain-share needs a version that explains"
        )


@events.test_start.add_listener
def begin(**_: Any) -> None:
    run.outcomes = {name: Outcomes() for name in run.outcomes}
    run.started = time.time()
    run.cpu_before = time.process_time()


@events.request.add_listener
def record(
    name: str, start_time: float, response_time: float, response: Any, exception: Exception | None, **_: Any
) -> None:
    due = start_time - run.started
    code = 200
    if exception is not None:
        code = (response.status_code if response is not None else 0) or NO_ANSWER
        code = WRONG_BODY if code == 200 else code
    run.outcomes[name].add(due, due + response_time / 1000, code)


@events.quitting.add_listener
def end(environment: Environment, **_: Any) -> None:
    target: str = environment.parsed_options.outcomes  # type: ignore[union-attr]  # set before the first event
    if not target or not run.started:
        return
    cpu_seconds = time.process_time() - run.cpu_before
    n_requests = sum(len(outcomes.codes) for outcomes in run.outcomes.values())
    for outcomes in run.outcomes.values():
        outcomes.started, outcomes.seconds = run.started, time.time() - run.started
        outcomes.cpu_seconds = cpu_seconds * len(outcomes.codes) / max(n_requests, 1)
    explained = run.outcomes["explain"]
    more = {"explanations": explained.summary()} if explained.codes else {}
    run.outcomes["predict"].write(Path(target), more)


class PredictUser(FastHttpUser):
    """Asks questions of task multiple_choice."""

    @task
    def predict(self) -> None:
        path = f"/predictions/{run.target}"
        with self.client.post(path, data=next(run.bodies), headers=HEADERS, name="predict", catch_response=True) as got:
            if got.status_code == 200 and b'"prediction"' not in got.content:
                got.failure("the answer holds no prediction")


class ExplainUser(FastHttpUser):
    """Asks why; only where the model's version explains."""

    @task
    def explain(self) -> None:
        self.client.post(f"/explanations/{run.target}", data=next(run.bodies), headers=HEADERS, name="explain")


class Shape(LoadTestShape):
    """`--shape`, of `--users` users over `--run-time`."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        asked: Any = self.runner.environment.parsed_options  # type: ignore[union-attr]  # set before the first tick
        seconds = float(asked.run_time or 0)
        run_time: float = self.get_run_time()
        if seconds and run_time >= seconds:
            return None
        users = users_at(asked.shape, run_time, seconds, asked.num_users or 1)
        return users, max(float(asked.spawn_rate or 0), STEADY_SPAWN_RATE)
