"""`marctl train` and `eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marctl.cli.calibration import HTML
from marctl.cli.output import FOLDER, PLACE, json_option, note, recipes_option, result, store_option
from marctl.cli.output import table as columns
from marctl.core.errors import UserError

if TYPE_CHECKING:
    from marctl.build.recipe import Version
    from marctl.train.evaluate import Score


@click.command()
@json_option
@click.argument("model")
@click.argument("version")
@click.option("--data", type=PLACE, help="Folder of SET/train.jsonl files; or a table, .csv or .parquet.")
@click.option("--init", is_flag=True, help="Only write the lines that training needs into the recipe.")
@recipes_option
@store_option
@click.option(
    "--split", default="train", show_default=True, help="Of a version with members: which files to learn from."
)
@click.option("--work", type=FOLDER, help="Where the checkpoint is kept [default: .marctl/train/MODEL-VERSION].")
@click.option("--restart", is_flag=True, help="Forget an earlier checkpoint.")
def train(
    model: str,
    version: str,
    data: Path | None,
    init: bool,
    recipes: Path,
    store: Path,
    split: str,
    work: Path | None,
    restart: bool,
) -> None:
    """Train a recipe's weights, as its `training` section says; --init writes that section.

    Interrupted, it goes on where it stopped when it is called again. The result is the recipe's delta file, the
    recorded date, files and seed in metadata.yaml, and MODEL_CARD.md. What the samples are answered now is recorded in
    the recipe. Where there are SET/dev.jsonl files, too, it is calibrated on them.

    An ensemble with `combine: stack` learns its members' weights. Give it rows that they were not trained on.

    With a section `table_training` it learns from the rows of a table: specification, model, calibration, and figures
    by cross-validation.

    \b
    Example: marctl train my-qa 1.0 --init
             marctl train my-qa 1.0 --data ./data
             marctl train credit 1.0 --data ./credit.csv
    """
    from marctl.build.recipe import read_version

    if init == (data is not None):
        raise click.UsageError("give either --data, to train, or --init, to prepare the recipe for it")
    item = read_version(recipes / model / version)
    if data is None:
        prepare(item)
        return
    if item.members:
        from marctl.train.members import learn_from_members

        files = learn_from_members(item, data, split, store, note)
        result({"files": list(map(str, files))}, "\n".join(f"{path} written" for path in files))
        return
    if split != "train":
        raise click.UsageError("--split is for versions with members; others are trained on SET/train.jsonl")
    if item.recipe.table_training is not None:
        train_on_table(item, data)
        return
    refuse_untrainable(item, data)
    from marctl.train.calibration_job import calibrate_trained
    from marctl.train.job import train_version

    work = work or Path(".marctl") / "train" / f"{model}-{version}"
    if restart:
        for path in work.glob("*.pt"):
            path.unlink()
    path = train_version(item, data, work, note)
    if item.recipe.ranges:
        from marctl.train.questions import find_files
        from marctl.train.ranges_job import quantize

        quantize(recipes / model / version, find_files(data, "train"), note)
    if calibrate_trained(recipes / model / version, data, note):
        note(f"{model} {version}: calibrated on {data}/*/dev.jsonl")
    build, measure = f"marctl build {model} {version}", f"marctl eval {model} {version} --data {data} --write"
    text = f"{path} written ({path.stat().st_size:,} bytes)\nbuild it with: {build}\nmeasure it with: {measure}"
    result({"delta": str(path), "bytes": path.stat().st_size}, text)


def prepare(version: Version) -> None:
    """Write the lines that training needs."""
    from marctl.train.section import add_lines

    added = add_lines(version)
    path = version.folder / "model.yaml"
    train = f"marctl train {version} --data DIR, where DIR/<set>/train.jsonl holds labelled questions"
    if version.recipe.table_training is not None:
        train = f"marctl train {version} --data TABLE.csv"
    head = f"added to {path}:\n\n{added}\n" if added else f"{path} has what training needs\n"
    result({"recipe": str(path), "added": added}, f"{head}train it with: {train}")


def refuse_untrainable(version: Version, data: Path) -> None:
    """Raise UserError for a recipe or a folder that lacks what training needs, before anything slow begins."""
    from marctl.train.questions import find_files
    from marctl.train.section import training_of

    training_of(version)
    find_files(data, "train")


def train_on_table(version: Version, data: Path) -> None:
    from marctl.build.recipe import read_version
    from marctl.train.tables.job import train_table

    files = train_table(version, data, note)
    found = read_version(version.folder).metadata["cross_validation"]
    figures = found["calibrated"] | {"auc": found["uncalibrated"]["auc"]}
    build = f"build it with: marctl build {version}"
    text = f"{table_figures(found)}\n{', '.join(map(str, files))} written, and MODEL_CARD.md; {build}"
    result({"files": list(map(str, files)), **figures}, text)


@click.command("eval")
@json_option
@click.argument("model")
@click.argument("versions", nargs=-1, required=True)
@click.option("--data", type=PLACE, help="Folder of SET/SPLIT.jsonl files; or a table, .csv or .parquet.")
@click.option("--split", default="dev", show_default=True, help="With --data: which files.")
@click.option(
    "--file",
    "files",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    help="A JSONL file, or a table; more than once.",
)
@click.option("--target", metavar="COLUMN", help="Of a table, the column of labels [default: as in training].")
@recipes_option
@store_option
@HTML
@click.option("--float32", is_flag=True, help="Also ask each row in float32, and tell how many answers change.")
@click.option("--write", is_flag=True, help="Record the figures in metadata.yaml and MODEL_CARD.md.")
def evaluate(
    model: str,
    versions: tuple[str, ...],
    data: Path | None,
    split: str,
    files: tuple[Path, ...],
    target: str | None,
    recipes: Path,
    store: Path,
    html: Path | None,
    float32: bool,
    write: bool,
) -> None:
    """Measure the accuracy and calibration of built archives on labelled rows.

    Rows go through the code that serves.

    ECE is the expected calibration error: how far confidence is from the share of right answers, on average.

    Rows are JSON lines of a request's fields and `label`, such as {"question", "choices", "label"}. Where train.jsonl
    stands beside a file, accuracy is also told without the rows that stand in it.

    Of a table and two labels, the area under the ROC curve and figures by group of protected features are told, too.

    \b
    Example: marctl eval mcqa 1.0 2.0 --data ./data
             marctl eval credit 1.0 --data ./credit.csv
    """
    if bool(data) == bool(files):
        raise click.UsageError("give the labelled rows: either --data FOLDER, or --file FILE, once or more")
    paths = rows_of(data, split, files)
    archives = {version: built_archive(model, version, store) for version in versions}
    for path in archives.values() if float32 else ():
        refuse_without_precision(path)
    from marctl.build.reader import read_archive
    from marctl.build.recipe import read_version
    from marctl.train.evaluate import evaluate as score
    from marctl.train.evaluate import open_archive
    from marctl.train.metadata import write_metadata

    table: dict[str, list[Score]] = {}
    for version, path in archives.items():
        known = read_archive(path).metadata
        if learned_from(known, paths):
            note(f"{model} {version}: it has learned from these rows; MODEL_CARD.md has held-out figures")
        note(f"{model} {version}: loading")
        other = open_archive(path, {"precision": "float32"}) if float32 else nullcontext()
        with open_archive(path) as pipeline, other as exact:
            table[version] = [
                score(pipeline, file, target or known.get("target"), known.get("groups"), exact) for file in paths
            ]
        if write:
            item = read_version(recipes / model / version)
            accuracy = item.metadata.get("accuracy", {}) | {split: {s.dataset: s.record() for s in table[version]}}
            write_metadata(item, {"accuracy": accuracy})
    if html is not None:
        write_page(html, model, table)
    content = {
        "model": model,
        "split": split,
        "versions": {v: {s.dataset: figures(s) for s in scores} for v, scores in table.items()},
    }
    result(content, report(model, table))


def refuse_without_precision(path: Path) -> None:
    """Raise UserError for an archive whose task has no choice of numbers to compute in, or predicts nothing."""
    import msgspec

    from marctl.build.reader import read_archive

    archive = read_archive(path)
    settings = {field.name for field in msgspec.structs.fields(archive.task.settings_type)}
    if "precision" not in settings or not archive.task.log_columns:
        raise UserError(f"--float32: {archive.name} {archive.version} has no `precision` to compare with float32")


def rows_of(data: Path | None, split: str, files: Sequence[Path]) -> list[Path]:
    """The files of labelled rows that --data or --file mean. Raises UserError."""
    from marctl.train.questions import find_files

    if data is not None:
        return [data] if data.is_file() else find_files(data, split)
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected JSON lines of labelled rows, or a table")
    return list(files)


def built_archive(model: str, version: str, store: Path) -> Path:
    """Raises UserError with the command that builds it."""
    path = store / f"{model}-{version}.mar"
    if not path.exists():
        raise UserError(f"{path}: not built; run: marctl build {model} {version}")
    return path


def learned_from(metadata: dict[str, Any], paths: Sequence[Path]) -> bool:
    """Whether a version, or its calibration, has learned from one of these files: it looks better there."""
    from marctl.build.build import digest

    files = (metadata.get("calibration", {}).get("files", {}), metadata.get("training_files", {}))
    known = {file["sha256"] for some in files for file in some.values()}
    return bool(known) and any(path.exists() and digest(path) in known for path in paths)


def write_page(path: Path, model: str, table: dict[str, list[Score]]) -> None:
    """Raises UserError where no version gives probabilities."""
    from marctl.core.files import write_atomically
    from marctl.train.reliability import joined
    from marctl.train.reliability_page import page

    parts = {}
    for version, scores in table.items():
        sets = {score.dataset: score.judged for score in scores if score.judged is not None}
        if not sets:
            raise UserError(f"--html: {model} {version} gives no probabilities, so there is no diagram to draw")
        parts[f"{model} {version}"] = sets | {"all": joined(list(sets.values()))}
    write_atomically(path, page(f"{model}: reliability", parts))


def figures(score: Score) -> dict[str, Any]:
    return {
        **score.record(),
        **(score.reliability.record() if score.reliability else {}),
        **({"groups": list(score.groups)} if score.groups else {}),
        **({"changed_from_float32": round(score.changed / score.questions, 4)} if score.changed is not None else {}),
        "interval_95": round(score.interval, 4),
        "chance": round(score.chance, 4),
        "cpu_seconds_per_1000": round(1000 * score.cpu_seconds / score.questions, 2),
    }


def report(model: str, table: dict[str, list[Score]]) -> str:
    """A row per data set, a column per version: accuracy in % and half its 95 % interval."""
    from marctl.train.evaluate import mean_accuracy

    rows = [["data set", "questions", "chance", *(f"{model} {version}" for version in table)]]
    for scores in zip(*table.values(), strict=True):
        first = scores[0]
        rows.append(
            [
                first.dataset,
                f"{first.questions:,}",
                f"{100 * first.chance:.1f}",
                *(f"{100 * s.accuracy:.1f} ± {100 * s.interval:.1f}" for s in scores),
            ]
        )
        if first.unrepeated:
            shares = [f"{100 * (s.right_unrepeated or 0) / (s.unrepeated or 1):.1f}" for s in scores]
            rows.append(
                [f"  without {first.questions - first.unrepeated} repeats", f"{first.unrepeated:,}", "", *shares]
            )
    rows.append(["mean", "", "", *(f"{100 * mean_accuracy(scores):.1f}" for scores in table.values())])
    rows += changed_rows(table) + area_rows(table) + reliability_rows(table)
    costs = [1000 * sum(s.cpu_seconds for s in scores) / sum(s.questions for s in scores) for scores in table.values()]
    rows.append(["CPU-s per 1,000 questions", "", "", *(f"{cost:.2f}" for cost in costs)])
    return "\n".join([columns(rows), *(group_table(f"{model} {v}", scores) for v, scores in table.items())]).rstrip()


def changed_rows(table: dict[str, list[Score]]) -> list[list[str]]:
    """Shares of answers that differ from float32's, in %; none if that was not asked."""
    rows = []
    for scores in zip(*table.values(), strict=True):
        if all(score.changed is not None for score in scores):
            first, shares = scores[0], [f"{100 * (s.changed or 0) / s.questions:.2f} %" for s in scores]
            rows.append([f"changed from float32, {first.dataset}", f"{first.questions:,}", "", *shares])
    if rows:
        counts = [(sum(s.changed or 0 for s in scores), sum(s.questions for s in scores)) for scores in table.values()]
        total = [f"{100 * changed / questions:.2f} %" for changed, questions in counts]
        rows.append(["changed from float32, all rows", f"{counts[0][1]:,}", "", *total])
    return rows


def area_rows(table: dict[str, list[Score]]) -> list[list[str]]:
    """Area under the ROC curve by data set; none where the versions give no event's probability."""
    rows = []
    for scores in zip(*table.values(), strict=True):
        areas = [score.area for score in scores if score.area is not None]
        if len(areas) == len(scores):
            cells = [f"{area:.3f} ± {interval:.3f}" for area, interval in areas]
            rows.append([f"AUC, {scores[0].dataset}", f"{scores[0].questions:,}", "", *cells])
    return rows


def group_table(name: str, scores: Sequence[Score]) -> str:
    """Of a version, figures by group; empty where there are no groups."""
    titles = [name, "rows", "share", "mean", "AUC", "Brier", "ECE", "predicted", "false pos.", "false neg."]
    fields = ("share", "mean_probability", "auc", "brier", "ece", "predicted_share", "false_positive_rate")
    rows = [
        [f"{one['feature']} {one['group']}", f"{one['rows']:,}"]
        + ["" if one[field] is None else f"{one[field]:.3f}" for field in (*fields, "false_negative_rate")]
        for score in scores
        for one in score.groups
    ]
    return f"\n{columns([titles, *rows])}" if rows else ""


def reliability_rows(table: dict[str, list[Score]]) -> list[list[str]]:
    """Calibration error by data set and over all rows, and the Brier score; none where no task gives probabilities."""
    from marctl.train.reliability import Reliability, joined

    judged = {v: [score.judged for score in scores if score.judged is not None] for v, scores in table.items()}
    if not all(judged.values()):
        return []
    rows = []
    for scores in zip(*table.values(), strict=True):
        errors = [s.reliability for s in scores if s.reliability is not None]
        cells = [f"{one.ece:.3f} ± {one.interval:.3f}" for one in errors]
        rows.append([f"ECE, {scores[0].dataset}", f"{scores[0].questions:,}", "", *cells])
    whole = [Reliability.of(joined(some)) for some in judged.values()]
    count = f"{whole[0].rows:,}"
    rows.append(["ECE, all rows", count, "", *(f"{one.ece:.3f} ± {one.interval:.3f}" for one in whole)])
    rows.append(["Brier score, all rows", count, "", *(f"{one.brier:.3f}" for one in whole)])
    return rows


def table_figures(found: Mapping[str, Any]) -> str:
    """Cross-validated figures of a version that was trained on a table, beside those of the baselines."""
    plain, after = found["uncalibrated"], found["calibrated"]
    rows = [["cross-validation", "AUC", "Brier score", "ECE"]]
    rows.append(
        [
            "this version",
            f"{plain['auc']:.3f} ± {plain['auc_interval_95']:.3f}",
            f"{plain['brier']:.3f}",
            f"{plain['ece']:.3f}",
        ]
    )
    rows.append(
        [
            f"calibrated ({found['calibration']['form']})",
            "",
            f"{after['brier']:.3f}",
            f"{after['ece']:.3f} ± {after['ece_interval_95']:.3f}",
        ]
    )
    rows += [[name, f"{other['auc']:.3f}", f"{other['brier']:.3f}", ""] for name, other in found["baselines"].items()]
    return columns(rows)
