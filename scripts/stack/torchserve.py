"""TorchServe as a process: its settings, its command line, its start and its stop.

Java is started directly, as ts/model_server.py (0.12.0) would: that script leaves no pid that can be trusted, lets the
environment replace the configuration, and keeps its pid file where a second server would find it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psutil
import requests

from handlers.torchserve.metrics import FOLDER_VARIABLE
from scripts.core.errors import UserError
from scripts.gateway import envoy
from scripts.stack import metrics_page, redis_server
from scripts.stack.java import Java
from scripts.stack.logs import Position
from scripts.stack.management import local_session
from scripts.stack.ports import HOST, Ports
from scripts.stack.process import kill, processes_marked, same_process, stop_tree
from scripts.stack.state import Redis, Running, State

PROJECT = Path(__file__).parents[2]
CONFIG, LOG_CONFIG, METRICS_CONFIG = "config.properties", "log4j2.xml", "metrics.yaml"
START_TIMEOUT_S = 90.0
SOCKET_PATH_BYTES = 104
"""The shortest limit on a Unix socket's path among the systems that TorchServe runs on (macOS; Linux has 108)."""
PASSED_ON = {"HOME", "USER", "LOGNAME", "LANG", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD"}
PASSED_ON_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "OMP_", "MKL_", "KMP_", "HF_", "TORCH_")
SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "KEY")


class StartFailed(UserError):
    """TorchServe did not come up."""


class AlreadyRunning(UserError):
    """This state folder's stack is up."""


class NotRunning(UserError):
    """This state folder has no stack that is up."""


def start(
    state: State, java: Java, ports: Ports, store: Path, temp: Path, redis: Redis | None, environ: Mapping[str, str]
) -> Running:
    """Start TorchServe with no model and wait until it answers. Raises StartFailed; nothing is left running then.

    `temp`: an empty folder of `make_temp`. `redis`: what the workers may use; stopped with the server if it is ours.
    """
    base = project_file(CONFIG)
    settings = resolve(read_properties(base), ports, store)
    write_properties(state.config, settings, base)
    log = Position.now(state.server_log)
    metrics_page.make_folder(temp)
    with state.console_log.open("wb") as console:
        process = subprocess.Popen(
            command(java, settings["vmargs"], state.config, store, temp),
            cwd=state.folder,
            env=environment(environ, state.logs, temp, redis),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the terminal's Ctrl-C reaches marctl alone, which stops things in order
        )
    running = Running(
        pid=process.pid,
        created=psutil.Process(process.pid).create_time(),
        inference=f"http://{HOST}:{ports.inference}",
        management=f"http://{HOST}:{ports.management}",
        metrics=f"http://{HOST}:{ports.metrics}",
        store=str(store),
        temp=str(temp),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        redis=redis,
        torchserve_metrics=f"http://{HOST}:{ports.torchserve_metrics}",
    )
    try:
        state.save_running(running)
        wait_healthy(state, running, process, log)
    except BaseException:
        stop(state, running)
        raise
    return running


def stop(state: State, running: Running) -> None:
    """Close the gateway, stop the server and everything it started, and remove its temp folder.

    Requests under way are answered first. A second interrupt skips the grace.
    """
    current = state.running()
    if current is not None and current.pid != running.pid:
        return  # another start has taken the folder over, and cleaned it
    running = current or running
    process = find(state, running)
    try:
        if process is not None:
            # A `marctl up` that watches this server then knows that its end was asked for.
            state.save_running(msgspec.structs.replace(running, stopping=True))
        try:
            if running.gateway is not None:
                envoy.stop(state, running.gateway, drain=process is not None)
        finally:
            if process is not None:
                stop_tree(process)
    finally:
        # After the workers, so that the last answers are in what it saves.
        if running.redis is not None:
            redis_server.stop(state, running.redis)
        kill(processes_marked(socket_prefix(Path(running.temp))))
        shutil.rmtree(running.temp, ignore_errors=True)
        state.forget_running()


def find(state: State, running: Running) -> psutil.Process | None:
    """The server's process, if it still runs."""
    return same_process(running.pid, running.created, str(state.config))


def running_server(state: State) -> Running:
    """The stack that is up; raises NotRunning."""
    running = state.running()
    if running is None:
        raise NotRunning(f"nothing runs in {state.folder}; start it with `marctl up`")
    if find(state, running) is None:
        raise NotRunning(
            f"the server of {state.folder} (pid {running.pid}) has died, its log is {state.server_log}; "
            "start it again with `marctl up`"
        )
    return running


def refuse_second(state: State) -> None:
    """Raise AlreadyRunning if this stack is up; clean up what a server that died has left."""
    running = state.running()
    if running is None:
        return
    if find(state, running) is not None:
        raise AlreadyRunning(
            f"the stack in {state.folder} is running already (pid {running.pid}, {running.inference}); "
            f"stop it with `marctl down --state {state.folder}`, or give the second one another --state and ports"
        )
    stop(state, running)


def make_temp(state: State) -> Path:
    """An empty folder for sockets and unpacked archives, its path short enough for a socket's."""
    temp = state.folder / "tmp"
    if len(os.fsencode(socket_prefix(temp))) + len("65535") > SOCKET_PATH_BYTES:
        return Path(tempfile.mkdtemp(prefix="marctl-"))
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(mode=0o700)
    return temp


def socket_prefix(temp: Path) -> str:
    """How the sockets of a stack's workers begin (Connector.java); it is part of each worker's command line."""
    return f"{temp}/.ts.sock."


def project_file(name: str) -> Path:
    """A settings file: the current folder's, else the one that came with this code."""
    for folder in (Path.cwd(), PROJECT):
        if (folder / name).is_file():
            return (folder / name).resolve()
    raise UserError(f"{name}: not in {Path.cwd()}, nor in {PROJECT}; run marctl in the project's folder")


def read_properties(path: Path) -> dict[str, str]:
    """A Java properties file, of the plain kind: one `key=value` a line, whole-line comments."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("=") for line in lines if line and line[0] not in "#!")
    return {key.strip(): value.strip() for key, _, value in pairs}


def write_properties(path: Path, settings: Mapping[str, str], origin: Path) -> None:
    lines = [f"# Made from {origin} by `marctl up`; written anew at each start."]
    lines += [f"{key}={value}" for key, value in settings.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def resolve(settings: Mapping[str, str], ports: Ports, store: Path) -> dict[str, str]:
    """The settings with this stack's addresses and absolute paths. Versions are registered later, one by one."""
    ours = {
        "inference_address": f"http://{HOST}:{ports.inference}",
        "management_address": f"http://{HOST}:{ports.management}",
        "metrics_address": f"http://{HOST}:{ports.torchserve_metrics}",
        "grpc_inference_port": str(ports.grpc_inference),
        "grpc_management_port": str(ports.grpc_management),
        "initial_worker_port": str(ports.workers),
        "model_store": str(store),
        "metrics_config": str(project_file(METRICS_CONFIG)),
    }
    kept = {key: value for key, value in settings.items() if key != "load_models"}
    flags = [flag for flag in settings.get("vmargs", "").split() if not flag.startswith("-Dlog4j.configurationFile=")]
    flags.insert(0, f"-Dlog4j.configurationFile={project_file(LOG_CONFIG).as_uri()}")
    return kept | ours | {"vmargs": " ".join(flags)}


def command(java: Java, vmargs: str, config: Path, store: Path, temp: Path) -> list[str]:
    home = server_home()
    options = [f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={temp}", *vmargs.split()]
    main = ["-cp", f"{home}/ts/frontend/*", "org.pytorch.serve.ModelServer"]
    # Workers run this very Python, whether or not its environment is activated.
    return [str(java.path), *options, *main, "--python", sys.executable, "-f", str(config), "-s", str(store), "-ncs"]


def server_home() -> Path:
    """The folder that holds TorchServe's `ts` package."""
    found = importlib.util.find_spec("ts")
    if found is None or not found.submodule_search_locations:
        raise UserError(f"TorchServe is not installed for {sys.executable}; pip install torchserve==0.12.0")
    return Path(found.submodule_search_locations[0]).resolve().parent


def environment(environ: Mapping[str, str], logs: Path, temp: Path, redis: Redis | None = None) -> dict[str, str]:
    """What the server and its workers see of the caller's environment: a short list, so that no secret comes along.

    PYTHONPATH stays out because it would put other code before an archive's own, TS_* because TorchServe would let it
    replace the settings.
    """
    kept = {name: value for name, value in environ.items() if passes(name)}
    path = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    ours = {"PATH": path, "LOG_LOCATION": str(logs), "METRICS_LOCATION": str(logs)}
    ours |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temp))
    ours[FOLDER_VARIABLE] = str(temp / metrics_page.FOLDER)
    if redis is not None:
        ours[redis_server.URL_VARIABLE] = redis.url
    ours |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    return {"OMP_NUM_THREADS": "1"} | kept | ours


def passes(name: str) -> bool:
    if name in PASSED_ON:
        return True
    return name.startswith(PASSED_ON_PREFIXES) and not any(word in name for word in SECRET_WORDS)


def wait_healthy(state: State, running: Running, process: subprocess.Popen[bytes], log: Position) -> None:
    """Until every port answers; raises StartFailed with the log's last lines if the process ends first."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(running):
        if process.poll() is not None:
            raise StartFailed(
                f"TorchServe ended while starting, exit code {process.returncode}{last_words(state, log)}"
            )
        if time.monotonic() > deadline:
            raise StartFailed(f"TorchServe did not answer within {START_TIMEOUT_S:.0f} s{last_words(state, log)}")
        time.sleep(0.1)


def answers(running: Running) -> bool:
    """Whether every port speaks HTTP; its health is another question."""
    session = local_session()
    try:
        figures = f"{running.torchserve_metrics}/metrics"
        for url in (f"{running.inference}/ping", f"{running.management}/models", figures):
            session.get(url, timeout=5)
    except requests.RequestException:
        return False
    return True


def last_words(state: State, log: Position) -> str:
    """The end of the logs, for a message: what the server logged since, else what Java printed."""
    lines, path = log.lines_since(), log.path
    if not lines:
        lines, path = Position(state.console_log, 0).lines_since(), state.console_log
    return f"; last lines of {path}:" + "".join(f"\n    {line}" for line in lines[-5:])
