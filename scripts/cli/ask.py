"""`marctl ask`: one question from the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scripts.cli.explained import explained
from scripts.cli.output import common, result
from scripts.core.errors import UserError

BAR = 24
DEFAULT_MODEL = "mcqa"
TIMEOUT_S = 60
METHODS = ("integrated_gradients", "gradient_x_input", "shapley", "occlusion")
TARGETS = ("logit", "probability", "margin")
SHOWN = {"prediction", "probabilities", "model", "model_version", "latency_ms"}


@click.command()
@common
@click.argument("question")
@click.argument("choices", nargs=-1, required=True)
@click.option("--context", help="What the question is about.")
@click.option("--model", help="Ask this model [default: the only one that is served, or mcqa].")
@click.option("--version", help="Ask this version [default: as the model's traffic says].")
@click.option("--explain", is_flag=True, help="Tell which words speak for the answer, and which against it.")
@click.option("--method", type=click.Choice(METHODS), help="How to explain [default: integrated_gradients].")
@click.option("--target", type=click.Choice(TARGETS), help="What to explain of the answer [default: logit].")
def ask(
    state: Path,
    question: str,
    choices: tuple[str, ...],
    context: str | None,
    model: str | None,
    version: str | None,
    explain: bool,
    method: str | None,
    target: str | None,
) -> None:
    """Ask the running stack one multiple-choice QUESTION with two or more CHOICES.

    Example: marctl ask "What do people use to cut bread?" "a pillow" "a knife" --explain
    """
    import requests

    from scripts.core.explainers import models_in
    from scripts.stack.client import client_session
    from scripts.stack.state import State
    from scripts.stack.versions import Stack

    if len(choices) < 2:
        raise click.UsageError("expected at least two CHOICES")
    options = {name: value for name, value in (("method", method), ("target", target)) if value}
    if options and not explain:
        raise click.UsageError(f"--{next(iter(options))} is for --explain")
    stack = Stack.open(State(state))
    model = model or the_model(models_in(stack.management.models()))
    path = "explanations" if explain else "predictions"
    url = f"{stack.running.predictions}/{path}/{model}" + (f"/{version}" if version else "")
    body: dict[str, Any] = {"question": question, "choices": choices} | ({"context": context} if context else {})
    body |= {"explain": options} if explain else {}
    try:
        response = client_session(stack.running).post(url, json=body, timeout=TIMEOUT_S)
        answer = response.json()
    except (requests.RequestException, ValueError) as err:
        raise UserError(f"no answer from {url}: {err}; look at `marctl status`") from err
    if response.status_code != 200:
        raise UserError(f"{answer.get('error') or answer.get('type')}: {answer.get('detail') or answer.get('message')}")
    # Another handler than ours answers in its own form.
    text = picture(choices, answer) if answer.keys() >= SHOWN else response.text
    texts = {"context": context or "", "question": question} | {f"choices[{i}]": c for i, c in enumerate(choices)}
    result(answer, "\n\n".join([text, *(explained(texts, found) for found in answer.get("explanations", []))]))


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
