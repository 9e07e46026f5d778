"""Where a version computes: on the processor, or on one of the node's GPUs; and what a GPU's faults mean."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, TypeVar

from marctl_handlers.core.errors import LoadError

log = logging.getLogger(__name__)
Each = TypeVar("Each")

Device = Literal["auto", "cpu", "cuda"]
"""What a recipe may say. `auto`: a GPU on a node that has one, else the processor."""
USABLE_SHARE = 0.9
"""Of a GPU's memory. The rest is for what CUDA itself takes for each process, which PyTorch cannot limit."""
MEMORY_WORDS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
)
"""How PyTorch, the CUDA runtime, cuBLAS, cuDNN and PyTorch's allocator for processors say that there is no memory."""


def device_for(wanted: str, gpu: int | None) -> str:
    """A torch device for a worker that was given this GPU of the node, None for none.

    Raises LoadError where `cuda` is wanted and there is no GPU that PyTorch can use.
    """
    if wanted not in ("auto", "cuda"):
        return "cpu"
    fault = fault_of(gpu)
    if fault is None:
        return f"cuda:{gpu}"
    if wanted == "cuda":
        raise LoadError(
            f"its recipe says `device: cuda`, but {fault}; serve it on a node with an NVIDIA GPU, or write "
            "`device: auto`, which takes the processor where there is none, and build it again"
        )
    # A node without GPUs is what `auto` is for; one with a GPU that lies idle is a mistake.
    log.log(logging.INFO if gpu is None else logging.WARNING, "`device: auto` computes on the processor: %s", fault)
    return "cpu"


def kind_of(device: str) -> str:
    """`cpu` or `cuda`, whichever of a node's GPUs it is."""
    return device.partition(":")[0]


def fault_of(gpu: int | None) -> str | None:
    """Why a worker cannot compute on this GPU; None if it can."""
    if gpu is None:
        return "TorchServe gave this worker no GPU (those that `nvidia-smi` lists go to workers, to shared ones never)"
    import torch

    if not torch.backends.cuda.is_built():
        return f"PyTorch {torch.__version__} was built without CUDA"
    if gpu >= torch.cuda.device_count():
        return f"PyTorch sees {torch.cuda.device_count()} GPUs, and this worker was given number {gpu}, counted from 0"
    return None


def take_gpu(device: str, workers: int) -> None:
    """Make a GPU this thread's own, and leave other workers' parts of its memory to them; nothing for the processor.

    `workers`: processes that share the GPU. What goes beyond a worker's part fails as if there were no more memory.
    """
    if device == "cpu":
        return
    import torch

    torch.cuda.set_device(device)  # or pinned memory and streams would be those of the first GPU
    torch.cuda.set_per_process_memory_fraction(USABLE_SHARE / workers, device)


def is_lost(err: BaseException) -> bool:
    """A fault after which this process's device answers nothing but the same fault (CUDA's sticky errors).

    CUDA does not say which errors are such, and work that was queued before may report them late, so that every error
    of the runtime counts that is not a lack of memory.
    """
    return not is_out_of_memory(err) and (type(err).__name__ == "AcceleratorError" or "CUDA error:" in str(err))


def is_out_of_memory(err: BaseException) -> bool:
    """A batch that needs more memory than there is; smaller ones may succeed."""
    return isinstance(err, MemoryError) or type(err).__name__ == "OutOfMemoryError" or said(err, MEMORY_WORDS)


def said(err: BaseException, words: Sequence[str]) -> bool:
    text = str(err)
    return any(word in text for word in words)


def smaller(batch: Sequence[Each], err: BaseException) -> list[Sequence[Each]]:
    """The parts in which a batch that failed is tried again: halves for want of memory, else each alone."""
    if is_out_of_memory(err):
        middle = len(batch) // 2
        return [batch[:middle], batch[middle:]]
    return [batch[i : i + 1] for i in range(len(batch))]
