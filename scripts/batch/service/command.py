"""The command that runs a job: `marctl batch`, with what the client asked for and what the service allows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from marctl.batch.service.records import Record
from marctl.batch.service.settings import ServiceSettings
from marctl.core.batch_jobs import BatchPredict

MARCTL = [sys.executable, "-c", "from marctl.cli import main; main(prog_name='marctl')"]


def command_of(record: Record, settings: ServiceSettings, progress: Path, state: Path, store: Path) -> list[str]:
    """`progress`: the file that tells how far it is; `state`: the stack's folder; `store`: of the archives."""
    asked = record.asked
    options = [*asked_options(asked), *service_options(settings), f"--progress={progress}", f"--store={store}"]
    options += [f"--state={state}", "--log"] if asked.log else []
    # Only the first attempt may discard what is there, or each would begin anew.
    options += ["--restart"] if asked.restart and record.attempts == 1 else []
    return [*MARCTL, "batch", *options, "--json", "--", f"{asked.model}/{asked.version}", *asked.inputs, asked.output]


def asked_options(asked: BatchPredict) -> Iterator[str]:
    """Each is one word, whatever its value begins with."""
    yield from (f"--map={field}={column}" for field, column in asked.map.items())
    yield from (f"--key={key}" for key in asked.key)
    yield from (f"--features={entity}={place}" for entity, place in asked.features.items())
    for name in ("where", "sample", "limit", "as_of", "max_errors"):
        if (value := getattr(asked, name)) is not None:
            yield f"--{name.replace('_', '-')}={value}"
    if asked.explain is not None:
        yield f"--explain={msgspec.json.encode(asked.explain).decode()}"


def service_options(settings: ServiceSettings) -> Iterator[str]:
    if settings.actors:
        yield f"--actors={settings.actors}"
    if settings.address:
        yield f"--address={settings.address}"
    yield from (f"--read-below={root}" for root in settings.read)
    yield from (f"--write-below={root}" for root in settings.write)
