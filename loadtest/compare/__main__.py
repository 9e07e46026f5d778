"""Compare servers: start, check, load and stop each in turn, several rounds; medians.

One worker process with one model thread each; dynamic batches of at most 32 within 5 ms; 64 keep-alive connections in a
closed loop; no two questions alike. A server that cannot be installed, started or trusted is in the table, with the
reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from loadtest import machine
from loadtest.compare.contenders import CONTENDERS, MODEL, PROJECT
from loadtest.compare.environments import InstallFailed
from loadtest.compare.harness import Model, Plan, Reference, StartFailed, WrongAnswer, measure
from loadtest.compare.table import Ceiling, Entry, markdown, plot
from loadtest.questions import bodies
from loadtest.run import interruptible, tell
from loadtest.stack import RECIPES, change_recipe

N_CHECKED = 32
CHECK_SEED = 7


def arguments() -> argparse.ArgumentParser:
    names = [contender.name for contender in CONTENDERS]
    parser = argparse.ArgumentParser(prog="loadtest/compare/run.sh", description=__doc__)
    parser.add_argument("--version", default="2.0", help="of mcqa")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of load, per server and round")
    parser.add_argument("--warm-up", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--single", type=float, default=5.0, metavar="SECONDS", help="at one connection")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--out", type=Path, default=PROJECT / "loadtest" / "reports" / "compare")
    return parser


@contextmanager
def unpacked(version: str) -> Iterator[Model]:
    """The version's archive, built if need be, and its files."""
    from marctl.build.build import build
    from marctl.build.recipe import find_versions

    original = RECIPES / MODEL / version
    if not (original / "model.yaml").is_file():
        raise StartFailed(f"model_store has no {MODEL} {version}")
    with tempfile.TemporaryDirectory(prefix="cmp-") as folder:
        recipes = Path(folder) / "recipes"
        copy = shutil.copytree(original, recipes / MODEL / version)
        # Answers are held to plain transformers', which have no calibration; and explainers would load under the load.
        change_recipe(copy / "model.yaml", {"calibration": None, "explanations": None})
        [recipe] = find_versions(recipes)
        archive, _ = build(recipe, Path(folder), notify=tell)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        yield Model(version, archive.resolve(), Path(folder) / "model", recipe.folder.resolve())


def reference(model: Model) -> Reference:
    """Plain transformers, float32, one question at a time."""
    import torch
    from transformers import AutoModelForMultipleChoice, AutoTokenizer

    from marctl.build.weights import quiet_transformers
    from marctl_handlers.tasks.multiple_choice.reference import plain_probabilities

    torch.set_num_threads(1)
    with quiet_transformers():
        net = AutoModelForMultipleChoice.from_pretrained(model.folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(model.folder)
    questions = list(islice(bodies(CHECK_SEED), N_CHECKED))
    decoded = [json.loads(body) for body in questions]
    return Reference(questions, [plain_probabilities(net, tokenizer, question, 64) for question in decoded])


def measure_ceiling(model: Model, seconds: float, into: Ceiling) -> None:
    root = model.folder.parent
    paths = os.pathsep.join([str(root), str(PROJECT)])
    ours = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(PROJECT / "loadtest" / "compare" / "ceiling.py"), str(seconds)]
    done = subprocess.run(command, cwd=root, env=os.environ | ours, capture_output=True, text=True, check=False)
    if done.returncode:
        tell(f"  ceiling failed: {done.stderr.strip()[-500:]}")
        return
    found = json.loads(done.stdout)
    into.rps.append(found["rps"])
    into.cpu_s_per_1000.append(found["cpu_s_per_1000"])
    into.single_p50_ms.append(found["single_p50_ms"])
    tell(f"  no server: {found['rps']:.0f}/s, {found['cpu_s_per_1000']:.2f} CPU-s per 1,000")


def compare(asked: argparse.Namespace) -> tuple[list[Entry], Ceiling]:
    plan = Plan(asked.seconds, asked.warm_up, asked.single, asked.connections)
    chosen = [contender for contender in CONTENDERS if contender.name in asked.only]
    entries = {contender.name: Entry(contender.name, contender.title) for contender in chosen}
    ceiling = Ceiling()
    stream = bodies(seed=1)
    with unpacked(asked.version) as model:
        expected = reference(model)
        for number in range(asked.rounds):
            tell(f"round {number + 1} of {asked.rounds}")
            measure_ceiling(model, asked.seconds, ceiling)
            # Every round begins elsewhere, so that nobody always comes after the same one.
            first = number * len(chosen) // asked.rounds
            for contender in chosen[first:] + chosen[:first]:
                entry = entries[contender.name]
                try:
                    measured = measure(contender, model, expected, stream, plan)
                except (InstallFailed, StartFailed, WrongAnswer, OSError, subprocess.SubprocessError) as err:
                    entry.failures.append(f"{type(err).__name__}: {err}")
                    tell(f"  {contender.name}: {entry.failures[-1]}")
                    continue
                entry.rounds.append(measured)
                tell(
                    f"  {contender.name}: {measured.rps:.0f}/s, p99 {measured.p99_ms:.0f} ms, "
                    f"{measured.cpu_s_per_1000:.2f} CPU-s per 1,000"
                )
    return list(entries.values()), ceiling


def main() -> int:
    asked = arguments().parse_args()
    try:
        with interruptible():
            entries, ceiling = compare(asked)
    except KeyboardInterrupt:
        tell("stopped")
        return 130
    asked.out.mkdir(parents=True, exist_ok=True)
    name = f"{MODEL}-{asked.version}"
    options = {key: str(value) for key, value in vars(asked).items()}
    content = {
        "machine": machine.describe(),
        "options": options,
        "no_server": ceiling.as_dict(),
        "servers": [entry.as_dict() for entry in entries],
    }
    (asked.out / f"{name}.json").write_text(json.dumps(content, indent=1))
    text = markdown(entries, ceiling)
    (asked.out / f"{name}.md").write_text(text)
    title = f"{MODEL} {asked.version}, {asked.connections} connections, medians of {asked.rounds} rounds (dots: rounds)"
    plot(entries, ceiling, title, asked.out / f"{name}.svg")
    sys.stdout.write(text)
    return 0 if all(entry.rounds for entry in entries) else 1


if __name__ == "__main__":
    raise SystemExit(main())
