"""`marctl log`: the log of every answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scripts.cli.output import FOLDER, WANTS_JSON, common, emit_json, note, result

if TYPE_CHECKING:
    from handlers.redis.log import PredictionRecord
    from scripts.records.kinds import Entry

WAIT_MS = 1000


@click.group()
def log() -> None:
    """The log of every answer: look at it, keep it in files, add true labels.

    Example: marctl log tail
    """


@log.command()
@common
@click.option("--to", type=FOLDER, help="Folder of the files [default: log in the stack's state folder].")
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    default=60.0,
    show_default=True,
    help="Seconds between two files of --follow; a full step does not wait for them.",
)
@click.option("--step", type=click.IntRange(1), default=20_000, show_default=True, help="Records of one step, at most.")
def drain(state: Path, to: Path | None, follow: bool, every: float, step: int) -> None:
    """Move the log from Redis into Parquet files, by date, model and version.

    Killed at any moment and started again, it neither loses nor doubles a record.

    Example: marctl log drain --to /data/log --follow
    """
    from scripts.records import drain as draining
    from scripts.records.streams import answering, connect
    from scripts.stack.state import State

    home = State(state)
    folder = to or home.prediction_log
    client = connect(home)
    if follow:
        note(f"draining to {folder}; stop it with Ctrl-C")
        draining.follow(client, folder, every, note, step)
    with answering():
        done = draining.drain(client, folder, step)
    if done.rejected:
        note(f"warning: {done.rejected} stream entries are no records of the log; they are left out")
    totals = {"prediction": done.predictions, "label": done.labels, "file": done.files}
    predictions, labels, files = (counted(number, name) for name, number in totals.items())
    result(dataclasses.asdict(done) | {"to": str(folder)}, f"{predictions} and {labels} in {files} below {folder}")


@log.command()
@common
@click.option("-n", "count", type=click.IntRange(0), default=20, show_default=True, help="How many of the last ones.")
@click.option("--follow", is_flag=True, help="Show what comes, until Ctrl-C.")
@click.option("--model", help="Only this model.")
@click.option("--version", help="Only this version.")
def tail(state: Path, count: int, follow: bool, model: str | None, version: str | None) -> None:
    """The last answers that are in Redis; with --json one line of JSON each.

    Example: marctl log tail --follow
    """
    from scripts.records.kinds import PREDICTION_KIND, id_pair
    from scripts.records.streams import after, answering, connect, newest, newest_records
    from scripts.stack.state import State

    client, stream = connect(State(state)), PREDICTION_KIND.stream
    with answering():
        last = next((entry_id for entry_id, _ in newest(client, stream)), "0-0")
        for entry in newest_records(client, PREDICTION_KIND, count, model, version):
            print_entry(entry)
            last = max(last, entry.id, key=id_pair)
        while follow:
            raw = after(client, stream, last, WAIT_MS)
            for entry in PREDICTION_KIND.decode_all(raw):
                if entry.concerns(model, version):
                    print_entry(entry)
            last = raw[-1][0] if raw else last


@log.command()
@common
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--id", "prediction_id", help="Of the prediction, from its answer.")
@click.option("--label", type=click.IntRange(0), help="The right choice, counted from 0.")
def label(state: Path, file: Path | None, prediction_id: str | None, label: int | None) -> None:
    """Add true labels of earlier predictions, from FILE or one by --id and --label; of several the latest counts.

    FILE holds lines of JSON, {"prediction_id": "...", "label": 1}, or is a .csv file with these columns.

    Example: marctl log label answers.jsonl
    """
    import msgspec

    from handlers.redis.log import Feedback
    from scripts.core.errors import UserError
    from scripts.records.labels import read_labels, send_labels
    from scripts.records.streams import answering, connect
    from scripts.stack.state import State

    one = prediction_id is not None and label is not None
    if one == (file is not None) or (not one and (prediction_id, label) != (None, None)):
        raise click.UsageError("give either FILE, or --id and --label")
    try:
        single = {"prediction_id": prediction_id, "label": label}
        labels = read_labels(file) if file is not None else [msgspec.convert(single, Feedback)]
    except msgspec.ValidationError as err:
        raise UserError(f"--id or --label: {err}") from err
    with answering():
        send_labels(connect(State(state)), labels)
    result({"labels": len(labels)}, f"{counted(len(labels), 'label')} added")


def counted(number: int, name: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number:,} {name}{'s' * (number != 1)}"


def print_entry(entry: Entry) -> None:
    import msgspec

    if click.get_current_context().meta.get(WANTS_JSON):
        content: dict[str, Any] = msgspec.structs.asdict(entry.record)
        emit_json({"stream_id": entry.id, "time": entry.time.isoformat(timespec="milliseconds")} | content)
    else:
        click.echo(line(entry))


def line(entry: Entry) -> str:
    """One answer, for people."""
    record: PredictionRecord = entry.record  # type: ignore[assignment]  # from the stream of predictions
    choice = "-" if record.prediction is None else str(record.prediction)
    confidence = "-" if record.confidence is None else f"{record.confidence:.3f}"
    latency = "-" if record.latency_ms is None else f"{record.latency_ms:.1f} ms"
    remarks = [f"cache {record.cache}"] if record.cache else []
    remarks += [f"for {record.fallback_from}"] if record.fallback_from else []
    remarks += ["shadow"] if record.shadow else []
    name = f"{record.model} {record.version}"
    head = (
        f"{entry.time:%Y-%m-%d %H:%M:%S}.{entry.time.microsecond // 1000:03}  {name:<12}  {choice:>2}  {confidence:>5}"
    )
    return f"{head}  {latency:>9}  {record.prediction_id}  {', '.join(remarks)}".rstrip()
