"""`marctl doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from marctl.cli.output import common, note, result, store_option

if TYPE_CHECKING:
    from marctl.doctor.finding import Finding

PORT = click.IntRange(1, 65535)
PORTS = {"gateway_port": 8000, "port": 8080, "management_port": 8081, "metrics_port": 8082}
"""Options of `marctl up`."""


def port_options(command: click.decorators.FC) -> click.decorators.FC:
    for name, port in reversed(PORTS.items()):
        option = "--" + name.replace("_", "-")
        command = click.option(option, type=PORT, default=port, show_default=True, help="As for `marctl up`.")(command)
    return command


@click.command()
@common
@store_option
@port_options
def doctor(state: Path, store: Path, **chosen: int) -> None:
    """Say what is missing here to build and serve, and the cure. Exit code 1 if something stops `marctl up`.

    Python, libraries, Java, Envoy, Redis, processor, memory, disk and ports are examined; nothing is changed.

    Example: marctl doctor --gateway-port 9000
    """
    findings = examine(state, store, {"--" + name.replace("_", "-"): port for name, port in chosen.items()})
    errors = sum(finding.state == "error" for finding in findings)
    content = {"ok": not errors, "findings": [asdict(finding) for finding in findings]}
    result(content, "\n".join([*map(line, findings), ending(errors)]))
    click.get_current_context().exit(1 if errors else 0)


def examine(state: Path, store: Path, ports: dict[str, int]) -> list[Finding]:
    """All of it; only Python and the libraries where one of these is missing, which the rest needs."""
    from marctl.doctor.finding import Finding

    try:
        from marctl.doctor.libraries import libraries

        findings = libraries()
    except ModuleNotFoundError as err:  # the one that reads requirements
        findings = [Finding("libraries", "error", f"{err.name} is not installed", f"pip install {err.name}")]
    if any(finding.state == "error" for finding in findings):
        note("the rest is examined once these are mended")
        return findings
    from marctl.doctor.machine import machine
    from marctl.doctor.ports import ports as examine_ports
    from marctl.doctor.programs import programs
    from marctl.stack.state import State

    return [*findings, *programs(), *machine([state, store]), *examine_ports(ports, State(state))]


def line(finding: Finding) -> str:
    told = f"{finding.state:<8} {finding.name:<10} {finding.found}"
    return f"{told}\n{'':<20}{finding.cure}" if finding.cure else told


def ending(errors: int) -> str:
    if not errors:
        return "nothing here stops `marctl up`"
    return "one thing stops `marctl up`" if errors == 1 else f"{errors} things stop `marctl up`"
