"""Processor, memory and disk: of the machine, or of the container that this runs in."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from marctl.capacity.limits import available_bytes, cores
from marctl.doctor.finding import Finding
from marctl.stack.metrics.gpus import names_of_gpus

if TYPE_CHECKING:
    from marctl_handlers.text.processor import Processor

MIB, GIB = 1 << 20, 1 << 30
LEAST_MEMORY, ENOUGH_MEMORY = 1 * GIB, 4 * GIB
"""TorchServe and Envoy take 0.3 GiB, a worker with PyTorch 0.4 to 0.8, building a small model 0.6."""
LEAST_DISK, ENOUGH_DISK = 256 * MIB, 2 * GIB
"""An archive is laid out and packed in the temporary folder, and unpacked once more by each worker."""


def machine(folders: Sequence[Path]) -> Iterator[Finding]:
    """`folders`: those that are written to, whether they are there or not."""
    yield processor_here()
    yield from gpus(names_of_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    yield memory(available_bytes())
    yield from disks([*folders, Path(tempfile.gettempdir())])


def processor_here() -> Finding:
    """PyTorch is asked, and so is loaded."""
    try:
        from marctl_handlers.text.processor import Processor
    except (ImportError, OSError) as err:  # a library of its own that is missing or for another machine
        return Finding("PyTorch", "error", f"does not load: {err}", "pip install --force-reinstall torch==2.13.0")
    return processor(Processor.here(), cores())


def processor(kind: Processor, count: float) -> Finding:
    """What its instructions mean for speed."""
    auto, small = kind.numbers("auto"), kind.numbers("int8")
    speed = f"computes `precision: auto` in {auto}, `precision: int8` in {small}"
    found = f"{count:g} {'core' if count == 1 else 'cores'}, {kind}: {speed}"
    if small != "int8":
        return Finding(
            "processor", "warning", found, "it has no fast products of 8 bits: text models are a few times slower"
        )
    if count < 1:
        return Finding("processor", "warning", found, "give the container at least one core")
    return Finding("processor", "ok", found)


def gpus(names: Sequence[str], visible: str | None) -> Iterator[Finding]:
    """Whether versions with `device: cuda` or `auto` can use the GPUs that NVIDIA's tool lists; nothing without one.

    `visible`: CUDA_VISIBLE_DEVICES.
    """
    if visible and not all(part.strip().isdecimal() for part in visible.split(",")):
        yield Finding(
            "CUDA_VISIBLE_DEVICES",
            "error",
            f"it is {visible}, and TorchServe takes numbers only: it would not start",
            "name the GPUs by their places, such as CUDA_VISIBLE_DEVICES=0,1",
        )
    if not names:
        return
    import torch

    found = ", ".join(names)
    if torch.backends.cuda.is_built():
        yield Finding("GPU", "ok", f"{found}: for versions with `device: cuda` or `auto` in their recipe")
    else:
        cure = "pip install torch==2.13.0 from the package index, without PyTorch's CPU wheels"
        yield Finding("GPU", "warning", f"{found}, but PyTorch {torch.__version__} was built without CUDA", cure)


def memory(available: int) -> Finding:
    found = f"{available / GIB:.1f} GiB available"
    if available < LEAST_MEMORY:
        return Finding("memory", "error", found, f"a stack with one small model needs {LEAST_MEMORY / GIB:.0f} GiB")
    if available < ENOUGH_MEMORY:
        return Finding(
            "memory", "warning", found, "each worker of a text model takes 0.4 GiB and more: serve few of them"
        )
    return Finding("memory", "ok", found)


def disks(folders: Sequence[Path]) -> Iterator[Finding]:
    """One finding per file system, and one per folder that cannot be written to."""
    seen = set()
    for folder in folders:
        place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
        if not os.access(place, os.W_OK):
            yield Finding("disk", "error", f"{place} cannot be written to", "change its owner, or name another folder")
        elif place.stat().st_dev not in seen:
            seen.add(place.stat().st_dev)
            yield disk(folder, shutil.disk_usage(place).free)


def disk(folder: Path, free: int) -> Finding:
    found = f"{free / GIB:.1f} GiB free in {folder}"
    if free < LEAST_DISK:
        return Finding("disk", "error", found, "make room there, or name another folder (TMPDIR for the temporary one)")
    if free < ENOUGH_DISK:
        return Finding("disk", "warning", found, "enough for small models; logs and archives grow")
    return Finding("disk", "ok", found)
