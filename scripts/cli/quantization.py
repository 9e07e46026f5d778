"""`marctl quantize`."""

from __future__ import annotations

from pathlib import Path

import click

from marctl.cli.output import FOLDER, json_option, note, recipes_option, result


@click.command()
@json_option
@click.argument("model")
@click.argument("version")
@click.option("--data", type=FOLDER, required=True, help="Folder of SET/SPLIT.jsonl files of labelled rows.")
@click.option("--split", default="train", show_default=True, help="Which files: not those that it is evaluated on.")
@recipes_option
def quantize(model: str, version: str, data: Path, split: str, recipes: Path) -> None:
    """Let a version compute in 8-bit integers where the processor has fast ones.

    Learns from 128 of the questions how large each product's inputs are, and writes that beside the recipe, with
    `precision: int8` in it. Products that lose too much stay in floating point. Weights do not change. Build the
    version again to serve it, and see with `marctl eval` what it costs in accuracy.

    Example: marctl quantize my-qa 1.0 --data ./data
    """
    from marctl.train.questions import find_files

    files = find_files(data, split)
    from marctl.train.ranges_job import quantize as learn

    found = learn(recipes / model / version, files, note)
    left = found["in_floating_point"]
    n_small = found["products"] - len(left)
    text = f"{n_small} of {found['products']} products in 8-bit integers"
    text += f", {', '.join(left)} in floating point" if left else ""
    build = f"build it with: marctl build {model} {version}"
    result(found | {"model": model, "version": version}, f"{model} {version}: {text}\n{build}")
