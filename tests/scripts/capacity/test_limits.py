from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from marctl.capacity.limits import available_bytes, cores

MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pod" / "container").mkdir(parents=True)
    return tmp_path


def groups(root: Path, text: str) -> Path:
    (root / "groups").write_text(text)
    return root / "groups"


def test_a_container_of_cgroup_2_has_its_own_memory_and_part_of_the_cores(root: Path) -> None:
    place = root / "pod" / "container"
    (place / "memory.max").write_text(f"{100 * MIB}\n")
    (place / "memory.current").write_text(f"{80 * MIB}\n")
    (place / "memory.stat").write_text(f"anon 1\ninactive_file {30 * MIB}\n")
    (place / "cpu.max").write_text("50000 100000\n")
    own = groups(root, "0::/pod/container\n")
    assert available_bytes(own, root) == 50 * MIB
    assert cores(own, root) == 0.5


def test_a_group_above_limits_it_too(root: Path) -> None:
    (root / "pod" / "container" / "memory.max").write_text("max\n")
    (root / "pod" / "memory.max").write_text(f"{10 * MIB}\n")
    (root / "pod" / "memory.current").write_text(f"{12 * MIB}\n")
    assert available_bytes(groups(root, "0::/pod/container\n"), root) == 0


def test_cgroup_1_has_its_own_names(root: Path) -> None:
    memory, cpu = root / "memory" / "x", root / "cpu,cpuacct" / "x"
    for folder in (memory, cpu):
        folder.mkdir(parents=True)
    (memory / "memory.limit_in_bytes").write_text(str(40 * MIB))
    (memory / "memory.usage_in_bytes").write_text(str(15 * MIB))
    (cpu / "cpu.cfs_quota_us").write_text("25000")
    (cpu / "cpu.cfs_period_us").write_text("100000")
    own = groups(root, "4:memory:/x\n1:cpu,cpuacct:/x\n0::/\n")
    assert available_bytes(own, root) == 25 * MIB
    assert cores(own, root) == 0.25


def test_without_groups_they_are_the_machines(root: Path) -> None:
    assert abs(available_bytes(root / "none", root) - psutil.virtual_memory().available) < 1 << 30
    assert cores(root / "none", root) == int(cores(root / "none", root)) >= 1
