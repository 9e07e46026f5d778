"""`marctl ask`: one question from the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from marctl.cli.explained import explained
from marctl.cli.output import common, result
from marctl.core.errors import UserError

DEFAULT_MODEL = "mcqa"
TIMEOUT_S = 60
METHODS = ("integrated_gradients", "gradient_x_input", "shapley", "occlusion", "tree_shap")
TARGETS = ("logit", "probability", "margin", "value")


@click.command()
@common
@click.argument("words", nargs=-1, required=True)
@click.option("--context", help="What a multiple-choice question is about.")
@click.option("--model", help="Ask this model [default: the only one that is served, or mcqa].")
@click.option("--version", help="Ask this version [default: as the model's traffic policy says].")
@click.option("--explain", is_flag=True, help="Tell which words or features speak for the answer.")
@click.option("--method", type=click.Choice(METHODS), help="How to explain [default: the model's own].")
@click.option("--target", type=click.Choice(TARGETS), help="What to explain of the answer [default: logit].")
def ask(
    state: Path,
    words: tuple[str, ...],
    context: str | None,
    model: str | None,
    version: str | None,
    explain: bool,
    method: str | None,
    target: str | None,
) -> None:
    """Ask the running stack a question and its choices, features as NAME=VALUE, or a request in JSON.

    \b
    Example: marctl ask "What do people use to cut bread?" "a pillow" "a knife" --explain
             marctl ask --model embed '{"input_text": "a knife"}'
             marctl ask --model risk income=1500 home=rent
    """
    import requests

    from marctl.stack.client import client_session
    from marctl.stack.look import Stack, served_models
    from marctl.stack.state import State

    options = {name: value for name, value in (("method", method), ("target", target)) if value}
    if options and not explain:
        raise click.UsageError(f"--{next(iter(options))} is for --explain")
    stack = Stack.open(State(state))
    model = model or the_model(served_models(stack))
    task = task_of(stack, model, version)
    try:
        request = task.request_from_words(words, context=context)
    except ValueError as err:
        raise click.UsageError(f"{model}: {err}") from err
    path = "explanations" if explain else "predictions"
    url = f"{stack.running.predictions}/{path}/{model}" + (f"/{version}" if version else "")
    body = request | ({"explain": options} if explain else {})
    try:
        response = client_session(stack.state).post(url, json=body, timeout=TIMEOUT_S)
        answer = response.json()
    except (requests.RequestException, ValueError) as err:
        raise UserError(f"no answer from {url}: {err}; look at `marctl status`") from err
    if response.status_code != 200:
        raise UserError(f"{answer.get('error') or answer.get('type')}: {answer.get('detail') or answer.get('message')}")
    text = f"{task.show(request, answer)}{signature(answer)}"
    result(answer, "\n\n".join([text, *(explained(texts(request), found) for found in answer.get("explanations", []))]))


def task_of(stack: Any, model: str, version: str | None) -> Any:
    """The task of the version to be asked, which knows how to write a request and show an answer."""
    from marctl.build.reader import read_archive

    served = stack.management.describe(model, version or stack.management.default_version(model))
    return read_archive(Path(stack.running.store) / served.archive).task


def the_model(served: list[str]) -> str:
    """The one that is meant when none is named."""
    if len(served) == 1:
        return served[0]
    if DEFAULT_MODEL in served:
        return DEFAULT_MODEL
    raise UserError(f"name one with --model; served are: {', '.join(served) or 'none'}")


def signature(answer: dict[str, Any]) -> str:
    """Who answered, and how fast; nothing for an answer of another form."""
    if not answer.keys() >= {"model", "model_version", "latency_ms"}:
        return ""
    truncated = answer.get("truncated")
    some = any(truncated) if isinstance(truncated, list) else truncated
    cut = ", the request was cut to the model's limit" if some else ""
    return f"\n  {answer['model']} {answer['model_version']}, {answer['latency_ms']:.1f} ms in the worker{cut}"


def texts(request: dict[str, Any]) -> dict[str, str]:
    """Field to text, as explanations name fields; the context comes first, as the model reads it."""
    found = {"context": request.get("context") or ""}
    for name, value in request.items():
        if isinstance(value, str):
            found[name] = value
        elif isinstance(value, list):
            found |= {f"{name}[{i}]": text for i, text in enumerate(value) if isinstance(text, str)}
    return found
