"""From an archive to a folder: write the model, ask it what the archive and PyTorch know, measure it, describe it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from marctl.build.reader import Archive
from marctl.core.errors import UserError
from marctl.core.files import made_folder, refuse_full
from marctl.export.agreement import Agreement, agreement, check_samples, question_feeds, sample_feeds
from marctl.export.engines import Engine, OnnxEngine, OpenVinoEngine, TorchEngine
from marctl.export.onnx_file import write_onnx
from marctl.export.openvino_file import write_openvino
from marctl.export.page import description, readme
from marctl.export.rows import Feeds
from marctl.export.source import portable_of
from marctl.export.speed import milliseconds
from marctl.export.weights_int8 import shrink_weights
from marctl_handlers.core.portable import Portable

ABOUT = "model.json"
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """`model_bytes`: of the model's files. `speed_ms`: processor time of a question on one core, by engine."""

    folder: Path
    model_bytes: int
    samples: int
    agreements: list[Agreement]
    unit: str
    speed_ms: dict[str, float]

    def record(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "model_bytes": self.model_bytes,
            "samples_checked": self.samples,
            "compared_with_float32": {one.name: one.record() for one in self.agreements},
            "difference_unit": self.unit,
            "cpu_ms_per_question": {name: round(value, 3) for name, value in self.speed_ms.items()},
        }


def export(
    archive: Archive,
    kind: str,
    precision: str,
    files: Sequence[Path],
    target: Path,
    *,
    force: bool = False,
    notify: Notify = lambda _: None,
) -> Exported:
    """Write the folder `target`, whole or not at all. `kind`: onnx or openvino; `precision`: float32, or int8 for the
    weights alone; `files`: of questions to compare on.

    Raises UserError.
    """
    refuse_target(target, force=force)
    refuse_full(target.parent, 2 * sum(size for name, size in archive.files.items() if name.startswith("model/")))
    with portable_of(archive) as portable, made_folder(target) as folder:
        notify(f"{archive.name} {archive.version}: writing {kind}")
        samples = sample_feeds(archive, portable)
        plain = TorchEngine(portable)
        engine = write_model(portable, kind, precision, folder)
        check_samples(archive, portable, engine, samples)
        asked = {path: list(question_feeds(path, archive, portable)) for path in files}
        found = [agreement(path, feeds, portable, plain, engine) for path, feeds in asked.items()]
        notify("measuring on one core")
        known: list[Feeds] = [rows for feeds in asked.values() for rows in feeds if rows is not None] or samples
        speed = milliseconds([plain, engine], known)
        about = description(archive, portable, kind, precision, folder, found)
        model_bytes = sum(path.stat().st_size for path in folder.iterdir())
        write_beside(archive, portable, about, folder, readme(archive, portable, kind, precision))
    speeds = dict(zip((plain.name, engine.name), speed, strict=True))
    return Exported(target, model_bytes, len(samples), found, portable.unit, speeds)


def refuse_target(target: Path, *, force: bool) -> None:
    """Raise UserError unless `target` is free, or with `force` an earlier export: nothing else is ever removed."""
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not (target / ABOUT).is_file():
        raise UserError(f"{target} exists and is no exported model; name another folder with --out")
    if not force:
        raise UserError(f"{target} holds an exported model already; --force replaces it")


def write_model(portable: Portable, kind: str, precision: str, folder: Path) -> Engine:
    """The model's files, and what runs them. Raises UserError."""
    if kind == "onnx":
        write_as(portable, precision, folder / "model.onnx")
        return OnnxEngine(folder / "model.onnx", precision)
    with tempfile.TemporaryDirectory(prefix="marctl-export-") as work:
        between = Path(work, "model.onnx")
        write_as(portable, precision, between)
        write_openvino(between, folder / "model.xml")
    return OpenVinoEngine(folder / "model.xml", precision)


def write_as(portable: Portable, precision: str, path: Path) -> None:
    """The .onnx file in float32, or with int8 weights."""
    write_onnx(portable, path)
    if precision == "int8":
        shrink_weights(path)


def write_beside(archive: Archive, portable: Portable, about: dict[str, Any], folder: Path, page: str) -> None:
    """Everything but the model."""
    samples = [msgspec.to_builtins(sample) for sample in archive.samples]
    texts = {
        "tokenizer.json": portable.tokenizer.to_str(pretty=True),
        ABOUT: json.dumps(about, indent=2, ensure_ascii=False),
        "samples.json": json.dumps(samples, indent=2, ensure_ascii=False),
        "README.md": page,
    }
    for name, text in texts.items():
        (folder / name).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
