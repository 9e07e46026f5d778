"""`marctl log`: the log of every question."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marctl.cli.group import Group
from marctl.cli.output import FOLDER, WANTS_JSON, common, emit_json, note, result
from marctl.core.words import counted

if TYPE_CHECKING:
    from marctl.records.keeper import Figures
    from marctl.records.kinds import Entry
    from marctl_handlers.redis.log import PredictionRecord

WAIT_MS = 1000
MIB, GIB = 1 << 20, 1 << 30
FILES = click.option("--to", "folder", type=FOLDER, help="Folder of the files [default: log in the state folder].")


@click.group(cls=Group)
def log() -> None:
    """Read the log of predictions, keep it in files, add true labels.

    Example: marctl log tail
    """


@log.command()
@common
@FILES
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    default=60.0,
    show_default=True,
    help="Seconds between two files of --follow; a full step does not wait for them.",
)
@click.option("--step", type=click.IntRange(1), default=20_000, show_default=True, help="Records of one step, at most.")
def drain(state: Path, folder: Path | None, follow: bool, every: float, step: int) -> None:
    """Move the log from Redis into Parquet files, by date, model and version.

    A running stack does so by itself, into its state folder. Killed at any moment and started again, a drain neither
    loses nor doubles a record.

    Example: marctl log drain --to /data/log --follow
    """
    from marctl.records import drain as draining
    from marctl.records.files import QUARANTINE
    from marctl.records.streams import answering, connect
    from marctl.stack.state import State

    home = State(state)
    folder = folder or home.prediction_log
    client = connect(home)
    if follow:
        keep_draining(home, folder, client, every, step)
        return
    with answering():
        done = draining.drain(client, folder, home.spill, step)
    if done.rejected:
        note(f"warning: {done.rejected} entries are not records of the log; they are below {folder}/*/{QUARANTINE}")
    totals = {"prediction": done.predictions, "label": done.labels, "file": done.files}
    predictions, labels, files = (counted(number, name) for name, number in totals.items())
    result(dataclasses.asdict(done) | {"to": str(folder)}, f"{predictions} and {labels} in {files} below {folder}")


def keep_draining(home: Any, folder: Path, client: Any, every: float, step: int) -> None:
    """Until Ctrl-C."""
    from marctl.records.keeper import Keeper
    from marctl.records.kinds import pyarrow

    pyarrow()
    note(f"draining to {folder}; stop it with Ctrl-C")
    Keeper(folder, lambda: client, home.spill, note, every, step).run()


@log.command()
@common
@FILES
def status(state: Path, folder: Path | None) -> None:
    """How much is kept and waits, and what was lost.

    Example: marctl log status --json
    """
    import msgspec

    from marctl.core.errors import UserError
    from marctl.records.keeper import figures_of
    from marctl.stack.state import State

    folder = folder or State(state).prediction_log
    figures = figures_of(folder)
    if figures is None:
        raise UserError(f"nothing drains to {folder}; `marctl up` does, and `marctl log drain --follow`")
    result(msgspec.to_builtins(figures), described(figures))


@log.command()
@common
@FILES
@click.option("--days", type=click.FloatRange(0, min_open=True), help="Remove days that are older.")
@click.option("--gib", type=click.FloatRange(0, min_open=True), help="Remove the oldest days beyond so much.")
def keep(state: Path, folder: Path | None, days: float | None, gib: float | None) -> None:
    """Limit what is kept in files; a limit that is not given stays as it is.

    The oldest days are removed first, as a whole; today is never removed.

    Example: marctl log keep --days 30 --gib 5
    """
    import msgspec

    from marctl.records.keeper import limits_of, save_limits
    from marctl.stack.state import State

    if days is None and gib is None:
        raise click.UsageError("give --days, or --gib, or both")
    folder = folder or State(state).prediction_log
    limits = limits_of(folder)
    limits = msgspec.structs.replace(
        limits,
        days=limits.days if days is None else days,
        bytes=limits.bytes if gib is None else round(gib * GIB),
    )
    save_limits(folder, limits)
    kept = f"{limits.days:g} days" if limits.days else "any number of days"
    size = f"{limits.bytes / GIB:g} GiB" if limits.bytes else "any size"
    result(msgspec.to_builtins(limits), f"{folder} keeps {kept}, {size}")


@log.command()
@common
@click.option("-n", "count", type=click.IntRange(0), default=20, show_default=True, help="How many of the last ones.")
@click.option("--follow", is_flag=True, help="Show what comes, until Ctrl-C.")
@click.option("--model", help="Only this model.")
@click.option("--version", help="Only this version.")
def tail(state: Path, count: int, follow: bool, model: str | None, version: str | None) -> None:
    """The last records, drained or not; with --json one line of JSON each.

    Example: marctl log tail --follow
    """
    from marctl.records.declarations import Declarations
    from marctl.records.kinds import PREDICTION_KIND
    from marctl.records.streams import after, answering, connect, last_id, newest_records
    from marctl.stack.state import State

    home = State(state)
    client, stream, declarations = connect(home), PREDICTION_KIND.stream, Declarations(home.prediction_log)
    with answering():
        declarations.learn(client)
        last = last_id(client, stream)
        undrained = newest_records(client, PREDICTION_KIND, declarations, count, model, version)
        for entry in [*drained(home.prediction_log, count - len(undrained), model, version), *undrained]:
            print_entry(entry)
        while follow:
            raw = after(client, stream, last, WAIT_MS)
            declarations.learn(client)
            for entry in PREDICTION_KIND.decode_all(raw, declarations).entries:
                if entry.concerns(model, version):
                    print_entry(entry)
            last = raw[-1][0] if raw else last


@log.command()
@common
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--id", "prediction_id", help="Of the prediction, from its answer.")
@click.option("--label", help="The true answer: a number or a text, as the model's task has it.")
@click.option("--model", help="The model of labels that name none; needed where the log has several.")
def label(state: Path, file: Path | None, prediction_id: str | None, label: str | None, model: str | None) -> None:
    """Add true labels of earlier predictions, from FILE or one by --id and --label; of several the latest counts.

    FILE holds lines of JSON, {"prediction_id": "...", "label": 1, "model": "mcqa"}, or is a .csv file with these
    columns. Of multiple-choice questions, a label is the place of the right choice, counted from 0.

    Example: marctl log label answers.jsonl --model mcqa
    """
    import msgspec

    from marctl.core.errors import UserError
    from marctl.records.declarations import Declarations
    from marctl.records.labels import read_labels, send_labels, typed
    from marctl.records.streams import answering, connect
    from marctl.stack.state import State
    from marctl_handlers.redis.log import Feedback

    one = prediction_id is not None and label is not None
    if one == (file is not None) or (not one and (prediction_id, label) != (None, None)):
        raise click.UsageError("give either FILE, or --id and --label")
    home = State(state)
    client, declarations = connect(home), Declarations(home.prediction_log)
    with answering():
        declarations.learn(client)
        if file is not None:
            labels = read_labels(file, declarations, model)
        else:
            try:
                single = msgspec.convert({"prediction_id": prediction_id, "label": label}, Feedback)
            except msgspec.ValidationError as err:
                raise UserError(f"--id: {err}") from err
            labels = [typed(single, declarations, model)]
        send_labels(client, labels)
    result({"labels": len(labels)}, f"{counted(len(labels), 'label')} added")


def drained(folder: Path, count: int, model: str | None, version: str | None) -> list[Entry]:
    """The last records of the files; none where nothing can have been drained."""
    from marctl.records.kinds import PyarrowMissing
    from marctl.records.reader import recent

    try:
        return recent(folder, count, model, version) if count > 0 else []
    except PyarrowMissing:
        return []


def described(figures: Figures) -> str:
    """For people."""
    undrained = "Redis does not answer" if figures.undrained is None else f"{figures.undrained:,} in Redis"
    kept = f"{figures.kept_bytes / MIB:,.1f} MiB of {counted(figures.days, 'day')}"
    lines = [
        f"drained       {counted(figures.predictions, 'prediction')}, {counted(figures.labels, 'label')}",
        f"not drained   {undrained}, {figures.spilled_bytes / MIB:,.1f} MiB in spill files",
        f"kept          {kept}{f', from {figures.oldest}' if figures.oldest else ''}",
        f"lost          {counted(figures.lost, 'record')}; {figures.quarantined:,} in quarantine",
        f"as of         {figures.time}",
    ]
    return "\n".join([*lines, *([f"trouble       {figures.trouble}"] if figures.trouble else [])])


def print_entry(entry: Entry) -> None:
    import msgspec

    if click.get_current_context().meta.get(WANTS_JSON):
        content: dict[str, Any] = msgspec.structs.asdict(entry.record)
        emit_json({"stream_id": entry.id, "time": entry.time.isoformat(timespec="milliseconds")} | content)
    else:
        click.echo(line(entry))


def line(entry: Entry) -> str:
    """One record, for people: time, version, what the task's first two columns say or the error, time taken, id."""
    record: PredictionRecord = entry.record  # type: ignore[assignment]  # from the stream of predictions
    values = [getattr(entry.outcome, column.name) for column in entry.columns[:2]] if entry.outcome else []
    said = "  ".join(map(short, values)) if values else f"{record.code} {record.error or ''}".strip()
    took = "-" if record.handler_ms is None else f"{record.handler_ms:.1f} ms"
    remarks = [f"cache {record.cache}"] if record.cache else []
    remarks += [f"for {record.fallback_from}"] if record.fallback_from else []
    remarks += ["shadow"] if record.shadow else []
    name = f"{record.model} {record.version}"
    head = f"{entry.time:%Y-%m-%d %H:%M:%S}.{entry.time.microsecond // 1000:03}  {name:<12}  {said:>9}"
    return f"{head}  {took:>9}  {record.prediction_id}  {', '.join(remarks)}".rstrip()


def short(value: object) -> str:
    """A value in a few characters."""
    if value is None:
        return "-"
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else text[:23] + "…"
