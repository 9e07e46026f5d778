from __future__ import annotations

import pytest
import torch

from marctl_handlers.core.devices import device_for, fault_of, is_lost, is_out_of_memory, kind_of, smaller, take_gpu
from marctl_handlers.core.errors import LoadError

LOST = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
]
SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.1 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]
OTHERS = [ValueError("CUDA"), RuntimeError("shape '[2]' is invalid for input of size 3"), IndexError("out of range")]


def name(err: BaseException) -> str:
    return str(err)[:40]


@pytest.mark.parametrize("err", LOST, ids=name)
def test_errors_of_the_runtime_lose_the_device(err: Exception) -> None:
    assert is_lost(err)
    assert not is_out_of_memory(err)


@pytest.mark.parametrize("err", SHORT, ids=name)
def test_a_lack_of_memory_loses_nothing_and_is_tried_in_halves(err: Exception) -> None:
    assert is_out_of_memory(err)
    assert not is_lost(err)
    assert smaller([1, 2, 3], err) == [[1], [2, 3]]


@pytest.mark.parametrize("err", OTHERS, ids=name)
def test_other_faults_are_neither(err: Exception) -> None:
    assert not is_lost(err)
    assert not is_out_of_memory(err)
    assert smaller([1, 2, 3], err) == [[1], [2], [3]]


@pytest.mark.parametrize("gpu", [None, 0])
def test_cuda_without_a_gpu_names_fault_and_cure(gpu: int | None) -> None:
    if gpu is not None and fault_of(gpu) is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(LoadError, match=r"`device: cuda`, but .*(nvidia-smi|without CUDA|sees 0 GPUs).*`device: auto`"):
        device_for("cuda", gpu)


def test_auto_takes_the_processor_where_there_is_no_gpu() -> None:
    assert device_for("auto", None) == "cpu"


def test_one_gpu_is_as_good_as_another() -> None:
    assert kind_of("cuda:0") == kind_of("cuda:1") == "cuda"
    assert kind_of("cpu") == "cpu"


def test_the_processor_is_taken_even_where_there_is_a_gpu() -> None:
    assert device_for("cpu", 0) == "cpu"


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_worker_computes_on_the_gpu_that_it_was_given(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_for(wanted, 1) == "cuda:1"
    with pytest.raises(LoadError, match="sees 2 GPUs, and this worker was given number 2"):
        device_for("cuda", 2)


def test_workers_of_one_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *limit: taken.append(limit))
    take_gpu("cuda:1", 4)
    assert taken == ["cuda:1", (0.225, "cuda:1")]
    take_gpu("cpu", 4)
    assert len(taken) == 2
