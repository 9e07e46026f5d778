"""The command line of a study that consists of several measurements."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
Measure = Callable[[float, int], Iterator[Figures]]
"""Takes the seconds of each load and the number of rounds."""


def measure_and_tell(program: str, description: str, commands: Mapping[str, Measure]) -> list[Figures]:
    """Run what the command line asks for; each row is printed as a JSON line once it is measured."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("command", choices=[*commands, "all"])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, also here")
    asked = parser.parse_args()
    rows: list[Figures] = []
    for name in commands if asked.command == "all" else [asked.command]:
        for row in commands[name](asked.seconds, asked.rounds):
            rows.append({"measurement": name, **row})
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
            sys.stdout.flush()
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows
