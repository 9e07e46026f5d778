"""`marctl export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from marctl.cli.output import FOLDER, PLACE, json_option, note, result, store_option, table

if TYPE_CHECKING:
    from marctl.export.export import Exported


@click.command()
@json_option
@click.argument("source", metavar="MODEL/VERSION|FILE.mar")
@click.option("--onnx", is_flag=True, help="Write an ONNX file.")
@click.option("--openvino", is_flag=True, help="Write OpenVINO's .xml and .bin.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "int8"]),
    default="float32",
    show_default=True,
    help="Of the weights; int8 takes a quarter of the room.",
)
@click.option("--out", type=FOLDER, help="Folder to write [default: ./MODEL-VERSION-FORMAT-PRECISION].")
@click.option("--data", type=PLACE, help="Compare with PyTorch on these questions, too: JSONL, or SET/dev.jsonl below.")
@click.option("--force", is_flag=True, help="Replace an earlier export in that folder.")
@store_option
def export(
    source: str,
    onnx: bool,
    openvino: bool,
    precision: str,
    out: Path | None,
    data: Path | None,
    force: bool,
    store: Path,
) -> None:
    """Write a built version as a folder that runs without TorchServe and without this package.

    For versions of text tasks: ONNX or OpenVINO model, tokenizer, samples, a description of inputs and output, and a
    README with code that runs. The model must answer the archive's samples. Size, and processor time beside PyTorch's
    on one core of this machine, are told.

    With --precision int8 the weights are stored in 8 bits and computed with in float32; --data tells how many answers
    become another choice.

    \b
    Example: marctl export mcqa/2.0 --onnx
             marctl export mcqa/2.0 --openvino --precision int8 --data ./data
    """
    if onnx == openvino:
        raise click.UsageError("give one of --onnx and --openvino")
    from marctl.build.reader import read_archive
    from marctl.cli.training import rows_of
    from marctl.export.source import refuse

    kind = "onnx" if onnx else "openvino"
    files = rows_of(data, "dev", ()) if data else []
    archive = read_archive(archive_named(source, store))
    refuse(archive, kind)
    target = out or Path(f"{archive.name}-{archive.version}-{kind}-{precision}")
    from marctl.export.export import export as write

    found = write(archive, kind, precision, files, target, force=force, notify=note)
    result(found.record(), report(found))


def archive_named(source: str, store: Path) -> Path:
    """The file that MODEL/VERSION or a path means. Raises UserError and UsageError."""
    from marctl.cli.training import built_archive

    if source.endswith(".mar"):
        return Path(source)
    model, separator, version = source.partition("/")
    if not separator or not model or not version or "/" in version:
        raise click.UsageError(f"{source!r}: expected MODEL/VERSION, such as mcqa/2.0, or an archive's file")
    return built_archive(model, version, store)


def report(found: Exported) -> str:
    """Size and speed, then a row per file of questions."""
    plain, made = found.speed_ms.items()
    lines = [
        f"{found.folder}  {found.model_bytes / 1e6:.1f} MB, answers its {found.samples} samples",
        f"one core, processor time per question: {made[1]:.2f} ms by {made[0]}, {plain[1]:.2f} ms by {plain[0]}",
    ]
    if not found.agreements:
        return "\n".join(lines)
    rows = [["beside float32", "questions", "other choice", f"largest difference ({found.unit})"]]
    for one in found.agreements:
        changed = "" if one.changed is None else f"{100 * one.changed / one.questions:.2f} %"
        rows.append([one.name, f"{one.questions:,}", changed, f"{one.largest:.2g}"])
    return "\n".join([*lines, table(rows)])
