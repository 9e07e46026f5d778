"""python -m loadtest.explanations STUDY ... [options]; one JSON line per figure. The studies:

cost        processor time of one explanation, by version, method and length
agreement   rank correlation of the methods' scores over dev questions
deletion    how soon the answer changes when the top words go, against random words; --plot draws it
latency     predictions at 100 requests/s, without and with 20 explanations/s in flight

Agreement and deletion look at the same explanations: named together, they make them once.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from msgspec import structs

from loadtest.machine import describe
from loadtest.questions import made
from loadtest.stack import running_stack
from marctl.build.recipe import read_version
from marctl.build.weights import load_weights
from marctl_handlers.archive import pipeline_of
from marctl_handlers.core.messages import Model, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.core.settings import ExplanationSettings
from marctl_handlers.tasks.multiple_choice.explain.cases import Case, cases_of
from marctl_handlers.tasks.multiple_choice.explain.removal import Game
from marctl_handlers.tasks.multiple_choice.explain.request import ExplainQuestion, Method, Options
from marctl_handlers.tasks.multiple_choice.schema import first_text
from marctl_handlers.tasks.multiple_choice.task import MultipleChoice

METHODS: tuple[Method, ...] = ("integrated_gradients", "gradient_x_input", "shapley", "occlusion")
SHARES = [i / 10 for i in range(8)]
"""Of an explanation's words that are taken away, or put in."""
RANDOM_ORDERS = 5
Figures = dict[str, Any]


def load(version: str, folder: Path) -> Pipeline:
    """A version of the repository, such as `mcqa/1.0`, as a worker that explains loads it."""
    found = read_version(Path("model_store") / version)
    model, tokenizer = load_weights(found)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = structs.replace(found.settings, explanations=ExplanationSettings(max_samples=4096))
    return pipeline_of(MultipleChoice, folder, Model(found.model, found.version), settings, "cpu")


@dataclass(frozen=True)
class Explained:
    """A loaded version, and the explanations that it has given."""

    version: str
    pipeline: Pipeline
    baseline: str
    target: str
    seen: dict[bytes, Figures] = field(default_factory=dict)

    def answer(self, question: dict[str, Any], method: str) -> Figures:
        """The answer with its explanation, made once for each question and method."""
        options = {"method": method, "target": self.target}
        if method != "gradient_x_input":
            options["baseline"] = self.baseline
        body = json.dumps(question | {"explain": options}).encode()
        if body not in self.seen:
            [reply] = self.pipeline.answer([Request(body, "x", explain=True)])
            assert reply.code == 200, reply.body
            self.seen[body] = json.loads(reply.body)
        return self.seen[body]


def cost(explained: Explained, count: int) -> Iterator[Figures]:
    """Questions of three lengths; the time includes the prediction itself."""
    wanted = {"short": (6, 12), "medium": (16, 26), "long": (34, 60)}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
    for made_up in made(0):
        question = {"question": made_up.question, "choices": list(made_up.choices)}
        question |= {"context": made_up.context} if made_up.context else {}
        words = len(f"{made_up.context or ''} {made_up.question} {made_up.choices[0]}".split())
        for name, (low, high) in wanted.items():
            if low <= words <= high and len(found[name]) < count:
                found[name].append(question)
        if all(len(questions) == count for questions in found.values()):
            break
    for method in METHODS:
        for name, questions in found.items():
            spent, words_seen, complete = [], [], []
            for question in questions:
                started = time.process_time()
                [one] = explained.answer(question, method)["explanations"]
                spent.append((time.process_time() - started) * 1000)
                words_seen.append(len(one["words"]))
                complete.append(one["complete"])
            yield {
                "version": explained.version,
                "method": method,
                "length": name,
                "n": count,
                "words": mean(words_seen),
                "cpu_ms_median": round(median(spent), 1),
                "cpu_ms_max": round(max(spent), 1),
                "complete": mean(complete),
            }


def dev_questions(folder: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Drawn evenly from every `DIR/<set>/dev.jsonl`."""
    sets = [[json.loads(line) for line in path.open()] for path in sorted(folder.glob("*/dev.jsonl"))]
    dice, found = random.Random(seed), []
    for i in range(count):
        row = dice.choice(sets[i % len(sets)])
        found.append({key: row[key] for key in ("question", "choices", "context") if row.get(key)})
    return found


def agreement(explained: Explained, questions: Sequence[dict[str, Any]]) -> Iterator[Figures]:
    """Spearman's correlation per question, of the words' scores for the chosen answer."""
    from scipy.stats import spearmanr  # type: ignore[import-untyped]  # no stubs

    scores: dict[str, list[list[float]]] = {}
    for method in METHODS:
        answers = [explained.answer(question, method) for question in questions]
        scores[method] = [[word["score"] for word in answer["explanations"][0]["words"]] for answer in answers]
    for i, one in enumerate(METHODS):
        for other in METHODS[i + 1 :]:
            pairs = zip(scores[one], scores[other], strict=True)
            found = [float(spearmanr(a, b).statistic) for a, b in pairs if len(a) > 2 and len(set(a)) > 1]
            yield {"version": explained.version, "target": explained.target, "methods": [one, other], "n": len(found),
                   "spearman_mean": round(mean(found), 3), "spearman_median": round(median(found), 3)}  # fmt: skip


def deletion(explained: Explained, questions: Sequence[dict[str, Any]]) -> Iterator[Figures]:
    """Mean share of answers that differ from the first, and its mean probability, by share of words gone or in."""
    orders = (*METHODS, "random")
    for order in orders:
        curves = [curve(explained, question, order) for question in questions]
        for way in ("deletion", "insertion"):
            same, probability = (np.mean([c[way][i] for c in curves], axis=0) for i in (0, 1))
            yield {
                "version": explained.version,
                "order": order,
                "way": way,
                "target": explained.target,
                "baseline": explained.baseline,
                "n": len(questions),
                "shares": SHARES,
                "changed": [round(float(1 - one), 4) for one in same],
                "probability": [round(float(one), 4) for one in probability],
                "area_probability": round(float(np.mean(probability)), 4),
            }


def curve(explained: Explained, question: dict[str, Any], order: str) -> dict[str, tuple[Any, Any]]:
    """By way: whether the answer stays, and its probability, at each share of the words; float arrays (shares,)."""
    answer = explained.answer(question, "gradient_x_input" if order == "random" else order)
    case, game = whole_game(explained, question, answer)
    places = {(word.field, word.start): i for i, word in enumerate(case.words)}
    words = answer["explanations"][0]["words"]
    ranked = sorted(words, key=lambda word: -word["score"])
    dice = random.Random(json.dumps(question))
    ways = [dice.sample(words, len(words)) for _ in range(RANDOM_ORDERS)] if order == "random" else [ranked]
    found: dict[str, list[Any]] = {"deletion": [], "insertion": []}
    for way in ways:
        numbers = [places[(word["field"], word["start"])] for word in way]
        gone, back = torch.ones(len(SHARES), len(places)), torch.ones(len(SHARES), len(places))
        for i, share in enumerate(SHARES):
            count = round(share * len(numbers))
            gone[i, numbers[:count]] = 0
            back[i, numbers[count:]] = 0
        for name, sets in (("deletion", gone), ("insertion", back)):
            logits = game.logits(sets)
            found[name].append(((logits.argmax(1) == 0).float().numpy(), torch.softmax(logits, 1)[:, 0].numpy()))
    return {name: tuple(np.mean([one[i] for one in ways_], axis=0) for i in (0, 1)) for name, ways_ in found.items()}


def whole_game(explained: Explained, question: dict[str, Any], answer: Figures) -> tuple[Case, Game]:
    """All choices' rows, with the words of all of them; the chosen choice's row is the first."""
    assert explained.pipeline.explainer is not None
    task: Any = explained.pipeline.task
    explainer: Any = explained.pipeline.explainer.task
    options = Options(target="probability", baseline=explained.baseline)  # type: ignore[arg-type]  # one of the parser's choices
    asked = ExplainQuestion(question["question"], tuple(question["choices"]), question.get("context"), options)
    texts = explainer._aligner.align([first_text(asked), *asked.choices])
    [case] = cases_of(asked, answer["probabilities"], texts, task.encoder, explainer.baselines)
    return case, Game(explainer._model, case, ExplanationSettings().tokens_per_pass)


def plot(rows: Sequence[Figures], path: Path) -> None:
    """Both curves of every order, side by side, in colours that colour-blind people tell apart."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip((*METHODS, "random"), ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#555555"), strict=True))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for row in rows:
        axis = axes[0] if row["way"] == "deletion" else axes[1]
        style = "--" if row["order"] == "random" else "-"
        axis.plot(row["shares"], row["probability"], style, color=colours[row["order"]], label=row["order"])
    for axis, text in zip(axes, ("words taken away, heaviest first", "words put in, heaviest first"), strict=True):
        axis.set_xlabel(f"share of {text}")
        axis.set_ylabel("probability of the first answer")
    axes[0].legend(frameon=False)
    first = rows[0]
    figure.suptitle(f"{first['version']}, {first['n']} dev questions, target {first['target']}, {first['baseline']}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def latency(version: str, seconds: float, rate: float, explain_rate: float) -> Iterator[Figures]:
    """Two generators on one stack: predictions, then predictions with explanations beside them."""
    model, _, number = version.partition("/")
    with running_stack([version], "--no-redis") as stack:
        load = [sys.executable, "-m", "loadtest.generator", "--seconds", str(seconds), "--ready", "5000"]
        predictions = [*load, f"{stack.gateway}/predictions/{model}/{number}", "--rate", str(rate)]
        explanations = [
            *load,
            f"{stack.gateway}/explanations/{model}/{number}",
            "--rate",
            str(explain_rate),
            "--seed",
            "7",
        ]
        subprocess.run([*predictions[:4], "3", *predictions[5:]], capture_output=True, check=False)
        for beside in (False, True, False, True):
            other = subprocess.Popen(explanations, stdout=subprocess.PIPE, text=True) if beside else None
            done = subprocess.run(predictions, capture_output=True, text=True, check=False)
            yield {"version": version, "rate": rate, "explanations_per_s": explain_rate if beside else 0,
                   "predictions": json.loads(done.stdout),
                   "explanations": json.loads(other.communicate()[0]) if other else None}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=["cost", "agreement", "deletion", "latency"], metavar="STUDY")
    parser.add_argument("--versions", nargs="+", default=["mcqa/1.0", "mcqa/2.0"])
    parser.add_argument("--data", type=Path, help="folder of <set>/dev.jsonl, for agreement and deletion")
    parser.add_argument("--count", type=int, default=200, help="questions; for cost, of each length")
    parser.add_argument("--target", default="logit", choices=["logit", "probability", "margin"])
    parser.add_argument("--baseline", default="mask", choices=["mask", "pad", "unk"])
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="deletion: draw each version's curves there")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--explain-rate", type=float, default=20.0)
    asked = parser.parse_args()
    if {"agreement", "deletion"} & set(asked.studies) and asked.data is None:
        parser.error("agreement and deletion need --data")
    emit({"machine": describe()})
    for version in asked.versions:
        rows = []
        for row in studies(asked, version):
            emit(row)
            rows += [row] if "way" in row else []
        if asked.plot and rows:
            asked.plot.mkdir(parents=True, exist_ok=True)
            plot(rows, asked.plot / f"deletion-{version.replace('/', '-')}.svg")
    return 0


def studies(asked: argparse.Namespace, version: str) -> Iterator[Figures]:
    if "latency" in asked.studies:
        yield from latency(version, asked.seconds, asked.rate, asked.explain_rate)
    if asked.studies == ["latency"]:
        return
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        explained = Explained(version, load(version, Path(folder)), asked.baseline, asked.target)
        if "cost" in asked.studies:
            yield from cost(explained, asked.count)
        questions = dev_questions(asked.data, asked.count) if asked.data else []
        if "agreement" in asked.studies:
            yield from agreement(explained, questions)
        if "deletion" in asked.studies:
            yield from deletion(explained, questions)


def emit(row: Figures) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
