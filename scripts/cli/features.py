"""`marctl features`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marctl.cli.group import Group
from marctl.cli.output import common, note, result, store_option, table
from marctl.core.errors import UserError
from marctl.core.words import counted

if TYPE_CHECKING:
    from marctl.features.table import Table
    from marctl_handlers.features import Specification

FILE = click.Path(dir_okay=False, path_type=Path)


def specified(command: Any) -> Any:
    """Where the specification comes from: MODEL VERSION, or --spec."""
    spec = click.option("--spec", type=FILE, help="A specification, in place of that of MODEL VERSION.")
    return common(store_option(spec(command)))


def filed(command: Any) -> Any:
    """How the file is read."""
    entity = click.option("--entity", help="Whose rows these are, where the file has ids of several entities.")
    time = click.option(
        "--time-column",
        help="When each row was true: seconds since 1970 or ISO 8601 [default: time, if there is one; else now].",
    )
    return entity(time(command))


@click.group(cls=Group)
def features() -> None:
    """Fill and check the feature store.

    From it a request may take the features of a customer, a shop, ... by its id.

    Example: marctl features get credit 1.0 customer=123
    """


@features.command()
@click.argument("words", nargs=-1, required=True, metavar="[MODEL VERSION] FILE")
@specified
@filed
@click.option("--ttl", type=click.FloatRange(min=0, min_open=True), help="Seconds until the entities are forgotten.")
def push(
    words: tuple[str, ...],
    state: Path,
    store: Path,
    spec: Path | None,
    entity: str | None,
    time_column: str | None,
    ttl: float | None,
) -> None:
    """Write a CSV or Parquet file of features into the store: one row for each entity, all or none of it.

    Nothing is written unless the whole file fits the specification. A row never replaces newer values. Interrupted,
    the same command goes on where it stopped.

    Example: marctl features push credit 1.0 customers.csv --ttl 604800
    """
    from marctl.features.push import Push
    from marctl.features.store import opened
    from marctl.stack.state import State

    found = opened_table(words, state, store, spec, entity, time_column)
    with opened(State(state)) as client:
        pushing = Push(client, found, ttl)
        try:
            done = pushing.run(note)
        except KeyboardInterrupt:
            note(f"{pushing.done:,} of {pushing.total:,} rows are written; the same command goes on from there")
            raise
    older = f", {done.older:,} of them older than what is stored" if done.older else ""
    size = f"{counted(done.rows, 'row')} of {found.entity.name}, {counted(len(found.features), 'feature')} each"
    text = f"{size}{older}, {done.seconds} s"
    names = [feature.name for feature in found.features]
    result({"entity": found.entity.name, "features": names, **dataclasses.asdict(done)}, text)


@features.command()
@click.argument("words", nargs=-1, required=True, metavar="[MODEL VERSION] ENTITY=ID")
@specified
def get(words: tuple[str, ...], state: Path, store: Path, spec: Path | None) -> None:
    """What stands in the store for one entity, how old it is, and what a model would be given.

    Example: marctl features get credit 1.0 customer=123
    """
    from marctl.features.look import look, named
    from marctl.features.store import opened
    from marctl.stack.state import State

    specification, word = parted(words, state, store, spec)
    entity, entity_id = named(specification, word)
    with opened(State(state)) as client:
        found = look(client, specification, entity, entity_id)
    titles = ["feature", "stored", "state", "age", "given to a model"]
    rows = [[s.feature, shown(s.stored), s.state, age(s.age_s), shown(s.used)] for s in found]
    content = {"key": entity.key_of(entity_id), "features": [dataclasses.asdict(each) for each in found]}
    result(content, f"{content['key']}\n{table([titles, *rows])}")


@features.command()
@click.argument("words", nargs=-1, required=True, metavar="[MODEL VERSION] FILE")
@specified
@filed
@click.option(
    "--limit",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of rows that may differ, of each feature.",
)
def check(
    words: tuple[str, ...],
    state: Path,
    store: Path,
    spec: Path | None,
    entity: str | None,
    time_column: str | None,
    limit: float,
) -> None:
    """Compare a training file with what the store would serve for the same entities now, feature by feature.

    Exit code 1 if more than --limit of the rows differ in one feature.

    Example: marctl features check credit 1.0 train.csv --limit 0.01
    """
    from marctl.features.check import check as compare
    from marctl.features.store import opened
    from marctl.stack.state import State

    found = opened_table(words, state, store, spec, entity, time_column)
    with opened(State(state)) as client:
        skews = compare(client, found)
    beyond = [skew.feature for skew in skews if skew.share > limit]
    titles = ["feature", "rows", "differ", "missing", "stale", "invalid", "extra", "mean in file", "in store"]
    told = [skew.told() for skew in skews]
    rows = [[shown(row[name]) for name in COLUMNS] for row in told]
    examples = "\n".join(f"{skew.feature}: {skew.example}" for skew in skews if skew.example)
    verdict = (
        f"more than {limit:.2%} differ: {', '.join(beyond)}" if beyond else f"no feature differs in over {limit:.2%}"
    )
    result({"beyond": beyond, "features": told}, "\n".join(filter(None, [table([titles, *rows]), examples, verdict])))
    if beyond:
        click.get_current_context().exit(1)


COLUMNS = ("feature", "rows", "share", "missing", "stale", "invalid", "extra", "file_mean", "store_mean")


def parted(words: tuple[str, ...], state: Path, store: Path, spec: Path | None) -> tuple[Specification, str]:
    """The specification that the words or --spec name, and the last word."""
    from marctl.build.specification import read_specification
    from marctl.features.source import of_version
    from marctl.stack.state import State

    if len(words) != (1 if spec else 3):
        expected = "one word after --spec" if spec else "MODEL VERSION and one word more, or --spec FILE"
        raise click.UsageError(f"expected {expected}, got {len(words)}: {' '.join(words)}")
    return (read_specification(spec) if spec else of_version(State(state), store, words[0], words[1])), words[-1]


def opened_table(
    words: tuple[str, ...], state: Path, store: Path, spec: Path | None, entity: str | None, time_column: str | None
) -> Table:
    from marctl.features.source import entity_of
    from marctl.features.table import Table, columns_of

    specification, name = parted(words, state, store, spec)
    path = Path(name)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    found = Table(path, specification, entity_of(specification, entity, columns_of(path)), time_column)
    if found.passed_over:
        note(f"passed over, because they are no features of {found.entity.name}: {', '.join(found.passed_over)}")
    return found


def shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() else repr(text)  # other writers' text, which a terminal would obey


def age(age_s: float | None) -> str:
    if age_s is None:
        return "-"
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if abs(age_s) >= 2 * seconds:
            return f"{age_s / seconds:.0f} {unit}"
    return f"{age_s:.0f} s"
