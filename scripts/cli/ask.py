"""`marctl ask`: one question from the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scripts.cli.output import common, result
from scripts.errors import UserError

BAR = 24
DEFAULT_MODEL = "mcqa"
TIMEOUT_S = 60
SHOWN = {"prediction", "probabilities", "model", "model_version", "latency_ms"}


@click.command()
@common
@click.argument("question")
@click.argument("choices", nargs=-1, required=True)
@click.option("--context", help="What the question is about.")
@click.option("--model", help="Ask this model [default: the only one that is served, or mcqa].")
@click.option("--version", help="Ask this version [default: as the model's traffic says].")
def ask(
    state: Path, question: str, choices: tuple[str, ...], context: str | None, model: str | None, version: str | None
) -> None:
    """Ask the running stack one multiple-choice QUESTION with two or more CHOICES.

    Example: marctl ask "What do people use to cut bread?" "a pillow" "a knife"
    """
    import requests

    from scripts.server.client import client_session
    from scripts.server.lanes import models_in
    from scripts.server.state import State
    from scripts.server.versions import Stack

    if len(choices) < 2:
        raise click.UsageError("expected at least two CHOICES")
    stack = Stack.open(State(state))
    model = model or the_model(models_in(stack.management.models()))
    url = f"{stack.running.predictions}/predictions/{model}" + (f"/{version}" if version else "")
    body: dict[str, Any] = {"question": question, "choices": choices} | ({"context": context} if context else {})
    try:
        response = client_session(stack.running).post(url, json=body, timeout=TIMEOUT_S)
        answer = response.json()
    except (requests.RequestException, ValueError) as err:
        raise UserError(f"no answer from {url}: {err}; look at `marctl status`") from err
    if response.status_code != 200:
        raise UserError(f"{answer.get('error') or answer.get('type')}: {answer.get('detail') or answer.get('message')}")
    # Another handler than ours answers in its own form.
    result(answer, picture(choices, answer) if answer.keys() >= SHOWN else response.text)


def the_model(served: list[str]) -> str:
    """The one that is meant when none is named."""
    if len(served) == 1:
        return served[0]
    if DEFAULT_MODEL in served:
        return DEFAULT_MODEL
    raise UserError(f"name one with --model; served are: {', '.join(served) or 'none'}")


def picture(choices: tuple[str, ...], answer: dict[str, Any]) -> str:
    """The choices with bars, the chosen one marked."""
    width = max(map(len, choices))
    lines = []
    for i, (choice, share) in enumerate(zip(choices, answer["probabilities"], strict=True)):
        mark = ">" if i == answer["prediction"] else " "
        lines.append(f"{mark} {choice.ljust(width)}  {'█' * round(share * BAR):<{BAR}} {100 * share:5.1f} %")
    cut = ", the question was cut to the model's limit" if answer.get("truncated") else ""
    return "\n".join(
        [*lines, f"  {answer['model']} {answer['model_version']}, {answer['latency_ms']:.1f} ms in the worker{cut}"]
    )
