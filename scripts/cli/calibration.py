"""`marctl calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from marctl.cli.output import FOLDER, json_option, note, recipes_option, result, store_option, table

if TYPE_CHECKING:
    from marctl.train.calibration_job import Calibrated

HTML = click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write reliability diagrams to this file, too."
)


@click.command()
@json_option
@click.argument("model")
@click.argument("version")
@click.option("--data", type=FOLDER, required=True, help="Folder of SET/SPLIT.jsonl files of labelled rows.")
@click.option("--split", default="dev", show_default=True, help="Which files: rows that training has not seen.")
@HTML
@recipes_option
@store_option
def calibrate(model: str, version: str, data: Path, split: str, html: Path | None, recipes: Path, store: Path) -> None:
    """Fit a built version's confidence to how often it is right, on labelled rows.

    Learns one temperature, or one by number of choices, or nothing, whichever cross-validation shows to be best, and
    writes it into the recipe. It never changes a choice. Figures are those of rows held out in turn; they are recorded
    in metadata.yaml and MODEL_CARD.md. Build the version again to serve it.

    Example: marctl calibrate mcqa 2.0 --data ./data
    """
    from marctl.train.questions import find_files

    files = find_files(data, split)
    from marctl.train.calibration_job import calibrate as learn

    found = learn(recipes / model / version, store / f"{model}-{version}.mar", files, note)
    if html is not None:
        write_page(html, f"{model} {version}: calibration", found)
    build = f"written to {recipes / model / version / 'model.yaml'}; build it with: marctl build {model} {version}"
    result(found.record() | {"model": model, "version": version}, f"{report(found)}\n{build}")


def write_page(path: Path, title: str, found: Calibrated) -> None:
    from marctl.core.files import write_atomically
    from marctl.train.reliability_page import page

    learned = found.learned
    states = {
        "Without calibration": found.by_set(learned.before),
        f"With {learned.form}, each row held out in turn": found.by_set(learned.held_out),
    }
    write_atomically(path, page(title, states))


def report(found: Calibrated) -> str:
    """What was chosen, then a row per data set: calibration error before and after, on held-out rows."""
    from marctl.train.reliability import Reliability

    learned = found.learned
    tried = ", ".join(f"{name} {loss:.4f}" for name, loss in learned.log_losses.items())
    rows = [["data set", "rows", "ECE before", "after", "Brier before", "after"]]
    before, after = found.by_set(learned.before), found.by_set(learned.held_out)
    for name, judged in before.items():
        old, new = Reliability.of(judged), Reliability.of(after[name])
        errors = [f"{one.ece:.3f} ± {one.interval:.3f}" for one in (old, new)]
        rows.append([name, f"{old.rows:,}", *errors, f"{old.brier:.3f}", f"{new.brier:.3f}"])
    return f"{learned.form}, by log loss on held-out rows: {tried}\n{table(rows)}"
