from __future__ import annotations

import sys
from pathlib import Path

import pytest

from marctl.stack.java import Java
from marctl.stack.ports import Ports
from marctl.stack.state import State
from marctl.stack.torchserve import (
    CONFIG,
    SETTINGS,
    SOCKET_PATH_BYTES,
    command,
    environment,
    make_temp,
    read_properties,
    resolve,
    socket_prefix,
)

PORTS = Ports(1, 2, 3, 4, 5, 9300, 6, 7, 8)
LOGS, TEMP = Path("/s/logs"), Path("/s/tmp")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    return resolve(read_properties(SETTINGS / CONFIG), PORTS, tmp_path)


def test_every_address_is_loopback(settings: dict[str, str]) -> None:
    assert settings["inference_address"] == "http://127.0.0.1:1"
    assert settings["management_address"] == "http://127.0.0.1:2"
    assert settings["metrics_address"] == "http://127.0.0.1:8"
    assert "0.0.0.0" not in "".join(settings.values())


def test_paths_are_absolute_and_exist(settings: dict[str, str]) -> None:
    assert Path(settings["metrics_config"]).is_file()
    log_config = settings["vmargs"].split()[0].removeprefix("-Dlog4j.configurationFile=file://")
    assert Path(log_config).is_file()


def test_no_url_is_allowed_and_nothing_is_loaded_by_itself(settings: dict[str, str]) -> None:
    assert settings["allowed_urls"] == "none"
    assert "load_models" not in settings


def test_workers_run_the_python_that_runs_marctl(tmp_path: Path) -> None:
    line = command(Java(Path("/j"), 17), "-Xmx1m -XX:+A", tmp_path / "c", tmp_path, tmp_path)
    assert line[line.index("--python") + 1] == sys.executable
    assert line[line.index("-Xmx1m") : line.index("-cp")] == ["-Xmx1m", "-XX:+A"]
    assert line[-1] == "-ncs"


def test_secrets_and_overrides_stay_out_of_the_workers_environment() -> None:
    caller = {"AWS_SECRET_ACCESS_KEY": "x", "HF_TOKEN": "x", "TS_CONFIG_FILE": "/other", "PYTHONPATH": "/src"}
    seen = environment({**caller, "LANG": "C.UTF-8", "HF_HOME": "/hf"}, LOGS, TEMP, {"REDIS_URL": "redis://"})
    assert not seen.keys() & caller.keys()
    assert (seen["LANG"], seen["REDIS_URL"], seen["HF_HOME"]) == ("C.UTF-8", "redis://", "/hf")


def test_workers_are_offline_with_one_thread_unless_told_otherwise() -> None:
    seen = environment({}, LOGS, TEMP)
    assert (seen["HF_HUB_OFFLINE"], seen["TOKENIZERS_PARALLELISM"], seen["OMP_NUM_THREADS"]) == ("1", "false", "1")
    assert environment({"OMP_NUM_THREADS": "2"}, LOGS, TEMP)["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"])
def test_workers_are_held_to_the_instructions_that_the_caller_names(name: str) -> None:
    """So that a stack here computes as one on an older processor does."""
    assert environment({name: "AVX2"}, LOGS, TEMP)[name] == "AVX2"


def test_python_of_this_environment_comes_first_in_path() -> None:
    assert environment({"PATH": "/usr/bin"}, LOGS, TEMP)["PATH"].split(":")[0] == str(Path(sys.executable).parent)


def test_temp_folder_is_the_states_own_and_empty() -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        state = State(Path(folder))
        (state.folder / "tmp" / "models").mkdir(parents=True)
        assert make_temp(state) == state.folder / "tmp"
        assert not list((state.folder / "tmp").iterdir())


def test_a_long_state_path_gets_a_temp_folder_with_a_short_one(tmp_path: Path) -> None:
    temp = make_temp(State(tmp_path / ("long" * 30)))
    try:
        assert temp.name.startswith("marctl-")
        assert len(socket_prefix(temp)) + 5 <= SOCKET_PATH_BYTES
    finally:
        temp.rmdir()


def test_settings_hold_no_trailing_comment() -> None:
    """Java properties have none: `true  # why` would read as false."""
    assert not any("#" in value for value in read_properties(SETTINGS / CONFIG).values())
