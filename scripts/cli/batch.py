"""`marctl batch`: predictions for files of rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from marctl.cli.output import common, note, result, store_option
from marctl.core.errors import UserError


@click.command()
@common
@click.argument("version", metavar="MODEL/VERSION")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.argument("output")
@store_option
@click.option(
    "--map", "mapping", multiple=True, metavar="FIELD=COLUMN", help="Column that a field of the question is read from."
)
@click.option("--key", "keys", multiple=True, metavar="[NAME=]COLUMN", help="Column to carry along to the output.")
@click.option("--where", help="Only rows that meet a condition, such as: amount > 100 and region in ('EU', 'UK')")
@click.option(
    "--sample", type=click.FloatRange(0, 1, min_open=True), help="Share of the rows, drawn by file and row number."
)
@click.option("--limit", type=click.IntRange(1), help="First so many of the rows that are left.")
@click.option(
    "--features", multiple=True, metavar="ENTITY=PARQUET", help="History of the features that rows leave to a store."
)
@click.option("--as-of", metavar="COLUMN", help="With --features: each row's time; what came later is not looked at.")
@click.option("--explain", metavar="JSON", help="Explain each answer, by the options of an explain request, or {}.")
@click.option("--log", "logged", is_flag=True, help="Record each row in the prediction log, with the role `batch`.")
@click.option("--max-errors", type=click.IntRange(0), help="Stop when more rows than this failed [default: never].")
@click.option("--actors", type=click.IntRange(1), help="Processes that predict [default: as many as cores, or GPUs].")
@click.option("--gpus", type=click.FloatRange(0), default=0.0, help="GPUs of each actor; 0.5 for two actors on one.")
@click.option("--address", metavar="HOST:PORT", help="A Ray cluster that runs [default: Ray of this command's own].")
@click.option("--unit-rows", type=click.IntRange(256), help="Rows that are committed together, a multiple of 256.")
@click.option("--restart", is_flag=True, help="Discard what an earlier job left in OUTPUT.")
@click.option("--progress", type=click.Path(dir_okay=False, path_type=Path), help="Also write progress to this file.")
@click.option("--read-below", multiple=True, hidden=True, help="Folder that inputs must be in, wherever links lead.")
@click.option("--write-below", multiple=True, hidden=True, help="The same for OUTPUT.")
def batch(
    state: Path,
    version: str,
    inputs: tuple[str, ...],
    output: str,
    store: Path,
    mapping: tuple[str, ...],
    keys: tuple[str, ...],
    where: str | None,
    sample: float | None,
    limit: int | None,
    features: tuple[str, ...],
    as_of: str | None,
    explain: str | None,
    logged: bool,
    max_errors: int | None,
    actors: int | None,
    gpus: float,
    address: str | None,
    unit_rows: int | None,
    restart: bool,
    progress: Path | None,
    read_below: tuple[str, ...],
    write_below: tuple[str, ...],
) -> None:
    """Predict every row of some files, with the code that serves.

    INPUT is a Parquet, JSONL or CSV file, a folder or a pattern, here or at s3:// and the like; OUTPUT a folder for
    predictions, errors.jsonl and manifest.json. Columns are named like the question's fields, or --map says otherwise.
    A row that cannot be predicted stands in errors.jsonl and stops nothing. However a job ended, the same command goes
    on where it stopped.

    \b
    Example: marctl batch mcqa/2.0 questions.parquet out/ --key id
             marctl batch mcqa/2.0 's3://bucket/2024-*/*.csv' s3://bucket/out --map question=prompt
    """
    if unit_rows is not None and unit_rows % 256:
        raise click.UsageError(f"--unit-rows {unit_rows} is no multiple of 256")
    if gpus > 1 and not gpus.is_integer():
        raise click.UsageError(f"--gpus {gpus:g}: expected a share of one GPU, or a whole number of GPUs")
    if bool(features) != bool(as_of):
        raise click.UsageError("--features and --as-of belong together")
    archive = archive_of(version, store)
    from marctl.batch.run import Interrupted, Request, run
    from marctl.stack.state import State
    from marctl.stack.up import terminable

    request = Request(
        archive=archive,
        inputs=inputs,
        output=output,
        mapping=pairs(mapping, "--map"),
        keys=pairs(tuple(key if "=" in key else f"{key}={key}" for key in keys), "--key"),
        where=where,
        sample=sample,
        limit=limit,
        unit_rows=unit_rows,
        features=pairs(features, "--features"),
        as_of=as_of,
        explain=None if explain is None else options_of(explain),
        log=logged,
        redis=log_url(state) if logged else None,
        actors=actors,
        gpus=gpus,
        address=address,
        max_errors=max_errors,
        restart=restart,
        progress_file=progress,
        read_below=read_below,
        write_below=write_below,
        trust=State(state).trust(),
    )
    try:
        with terminable():
            manifest = run(request, note)
    except Interrupted as err:
        note(str(err))
        raise
    result({"output": output, **manifest}, told(output, manifest))


def archive_of(version: str, store: Path) -> Path:
    """`mcqa/2.0` of the store, or a file. Raises UserError."""
    if version.endswith(".mar"):
        return Path(version)
    path = store / f"{version.replace('/', '-')}.mar"
    if version.count("/") != 1 or not path.is_file():
        there = ", ".join(sorted(found.stem.replace("-", "/") for found in store.glob("*.mar"))) or "none"
        raise UserError(
            f"no archive of {version} in {store}; there are: {there}. Expected MODEL/VERSION or a .mar file"
        )
    return path


def options_of(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as err:
        raise click.UsageError(f"--explain {text}: not JSON: {err}") from err
    if not isinstance(found, dict):
        raise click.UsageError(f"--explain {text}: expected an object, such as {{}}")
    return found


def log_url(state: Path) -> str:
    """Of the stack that runs, or REDIS_URL. Raises UserError."""
    from marctl.stack.state import State
    from marctl.stack.up import redis_url

    found = redis_url(State(state)) or os.environ.get("REDIS_URL")
    if not found:
        raise UserError("--log: there is no prediction log: no stack runs here with a Redis, and REDIS_URL is not set")
    return found


def pairs(texts: tuple[str, ...], option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, mark, column = text.partition("=")
        if not mark or not name or not column:
            raise click.UsageError(f"{option} {text}: expected NAME=COLUMN")
        if name in found:
            raise click.UsageError(f"{option} {name} is given twice")
        found[name] = column
    return found


def told(output: str, manifest: dict[str, Any]) -> str:
    rows = manifest["rows"]
    failed = f", {rows['failed']:,} failed: {output.rstrip('/')}/errors.jsonl" if rows["failed"] else ""
    count = f"{rows['predicted']:,} row{'s' * (rows['predicted'] != 1)}"
    return f"{count} predicted by {manifest['model']} {manifest['version']} in {output}{failed}"
