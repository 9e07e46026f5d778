"""TorchServe as a process: its settings, its command line, its start and its stop.

Java is started directly, as ts/model_server.py (0.12.0) would: that script leaves no pid that can be trusted, lets the
environment replace the configuration, and keeps its pid file where a second server would find it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import psutil
import requests

from marctl.core.errors import UserError
from marctl.core.files import write_atomically, write_failed
from marctl.core.http import HOST, local_session
from marctl.core.process import Identity, Program, find_processes, kill, processes_marked, stop_tree
from marctl.stack.java import Java
from marctl.stack.metrics.workers import FOLDER, make_folder
from marctl.stack.ports import Ports
from marctl.stack.state import State
from marctl_handlers.redis import spill
from marctl_handlers.torchserve.metrics import FOLDER_VARIABLE

SETTINGS = Path(__file__).parent / "settings"
"""The files that come with this code; in a clone they are links to those at its top."""
CONFIG, LOG_CONFIG, METRICS_CONFIG = "config.properties", "log4j2.xml", "metrics.yaml"
MAIN_CLASS = "org.pytorch.serve.ModelServer"
START_TIMEOUT_S = 90.0
SOCKET_PATH_BYTES = 104
"""The shortest limit on a Unix socket's path among the systems that TorchServe runs on (macOS; Linux has 108)."""
PASSED_ON = {"HOME", "USER", "LOGNAME", "LANG", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD"}
PASSED_ON_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "OMP_", "MKL_", "KMP_", "ONEDNN_", "ATEN_", "HF_", "TORCH_")
SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "KEY")
MODELS = "models"
"""In the temp folder, where TorchServe links what it serves."""
HOME = "home"
"""In the temp folder: TorchServe's own package, but for the file that it starts as a worker."""
WORKER_FILE = "model_service_worker.py"


@dataclass(frozen=True)
class TorchServe:
    """One stack's TorchServe."""

    state: State
    ports: Ports
    store: Path
    temp: Path
    """A folder of `make_temp`, for sockets and unpacked archives."""
    redis_urls: Mapping[str, str]
    """By the variable in which workers look for it."""

    def start(self, java: Java, environ: Mapping[str, str]) -> Identity:
        """Start it with no model and wait until it answers.

        Raises PortTaken or StartFailed; nothing is left running then.
        """
        self.sweep()
        base = project_file(CONFIG)
        settings = resolve(read_properties(base), self.ports, self.store)
        write_properties(self.state.config, settings, base)
        make_folder(self.temp)
        make_home(self.temp / HOME)
        self.ports.refuse_taken("inference", "management", "torchserve_metrics", "grpc_inference", "grpc_management")
        return self.program(java, settings["vmargs"], environ).start(self._answers, START_TIMEOUT_S)

    def stop(self) -> bool:
        """End every TorchServe of this state folder, and its workers; whether there was one.

        Whoever asks one without the gateway and waits for an answer gets it. With nobody connected it ends at once: its
        HTTP library would wait twice for two quiet seconds.
        """
        found = find_servers(self.state)
        try:
            for process in found:
                stop_tree(process, has_finished=partial(is_disconnected, process))
        finally:
            self.sweep()
        return bool(found)

    def sweep(self) -> None:
        """Remove what a server that died has left: workers, sockets, links."""
        kill(processes_marked(socket_prefix(self.temp)))
        for path in self.temp.glob(".ts.sock.*"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.temp / MODELS, ignore_errors=True)

    def program(self, java: Java, vmargs: str, environ: Mapping[str, str]) -> Program:
        return Program(
            name="TorchServe",
            command=command(java, vmargs, self.state.config, self.store, self.temp),
            folder=self.state.folder,
            environ=environment(environ, self.state.logs, self.temp, self.redis_urls)
            | {spill.FOLDER_VARIABLE: str(self.state.spill)},
            log=self.state.console_log,
            told=self.state.server_log,
        )

    def _answers(self, pid: int) -> bool:
        """Whether this very process speaks HTTP on every port; its health is another question."""
        ports = {
            self.ports.inference: "ping",
            self.ports.management: "models",
            self.ports.torchserve_metrics: "metrics",
        }
        session = local_session()
        try:
            for port, page in ports.items():
                session.get(f"http://{HOST}:{port}/{page}", timeout=5)
        except requests.RequestException:
            return False
        # It ends when it cannot have those of gRPC, which it opens last.
        return {*ports, self.ports.grpc_inference, self.ports.grpc_management} <= listening_ports(pid)


def is_disconnected(process: psutil.Process) -> bool:
    """Whether it listens no more, and nobody is connected to it."""
    try:
        return not process.net_connections("tcp")
    except psutil.Error:
        return False


def listening_ports(pid: int) -> set[int]:
    """Where a process listens; another server may answer on a port that this one could not get."""
    with suppress(psutil.Error):
        found = psutil.Process(pid).net_connections("tcp")
        return {c.laddr.port for c in found if c.status == psutil.CONN_LISTEN}
    return set()


def find_servers(state: State) -> list[psutil.Process]:
    """Every TorchServe of a state folder, by its command line."""
    return find_processes(lambda process: {MAIN_CLASS, str(state.config)} <= set(process.cmdline()))


def make_temp(state: State) -> Path:
    """An empty folder for sockets and unpacked archives, its path short enough for a socket's."""
    temp = state.folder / "tmp"
    try:
        if len(os.fsencode(socket_prefix(temp))) + len("65535") > SOCKET_PATH_BYTES:
            return Path(tempfile.mkdtemp(prefix="marctl-"))
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(mode=0o700)
    except OSError as err:
        raise write_failed(temp, err) from err
    return temp


def socket_prefix(temp: Path) -> str:
    """How the sockets of a stack's workers begin (Connector.java); it is part of each worker's command line."""
    return f"{temp}/.ts.sock."


def project_file(name: str) -> Path:
    """A settings file: the current folder's, else the one that came with this code."""
    for folder in (Path.cwd(), SETTINGS):
        if (folder / name).is_file():
            return (folder / name).resolve()
    raise UserError(f"{name}: not in {Path.cwd()}, nor in {SETTINGS}; put one there, or install torchserve-marctl anew")


def read_properties(path: Path) -> dict[str, str]:
    """A Java properties file, of the plain kind: one `key=value` a line, whole-line comments."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("=") for line in lines if line and line[0] not in "#!")
    return {key.strip(): value.strip() for key, _, value in pairs}


def write_properties(path: Path, settings: Mapping[str, str], origin: Path) -> None:
    lines = [f"# Made from {origin} by `marctl up`; written anew at each start."]
    lines += [f"{key}={value}" for key, value in settings.items()]
    write_atomically(path, "\n".join(lines) + "\n")


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
    options = [f"-Dmodel_server_home={temp / HOME}", f"-Djava.io.tmpdir={temp}", *vmargs.split()]
    main = ["-cp", f"{server_home()}/ts/frontend/*", MAIN_CLASS]
    # Workers run this very Python, whether or not its environment is activated.
    return [str(java.path), *options, *main, "--python", sys.executable, "-f", str(config), "-s", str(store), "-ncs"]


def make_home(home: Path) -> None:
    """A folder like `server_home`, whose workers import no PyTorch before a version's own code does (worker.py)."""
    package = home / "ts"
    try:
        shutil.rmtree(home, ignore_errors=True)
        package.mkdir(parents=True)
        for path in (server_home() / "ts").iterdir():
            if path.name != WORKER_FILE:
                (package / path.name).symlink_to(path)
        # A copy: Python looks for modules where a script really lies, and this one's neighbours are the stack's.
        shutil.copyfile(Path(__file__).with_name("worker.py"), package / WORKER_FILE)
    except OSError as err:
        raise write_failed(home, err) from err


def server_home() -> Path:
    """The folder that holds TorchServe's `ts` package."""
    found = importlib.util.find_spec("ts")
    if found is None or not found.submodule_search_locations:
        raise UserError(f"TorchServe is not installed for {sys.executable}; pip install torchserve==0.12.0")
    return Path(found.submodule_search_locations[0]).resolve().parent


def environment(
    environ: Mapping[str, str], logs: Path, temp: Path, redis_urls: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """What the server and its workers see of the caller's environment: a short list, so that no secret comes along.

    PYTHONPATH stays out because it would put other code before an archive's own, TS_* because TorchServe would let it
    replace the settings.
    """
    kept = {name: value for name, value in environ.items() if passes(name)}
    path = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    ours = {"PATH": path, "LOG_LOCATION": str(logs), "METRICS_LOCATION": str(logs)}
    ours |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temp))
    ours[FOLDER_VARIABLE] = str(temp / FOLDER)
    ours |= redis_urls
    ours |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    return {"OMP_NUM_THREADS": "1"} | kept | ours


def passes(name: str) -> bool:
    if name in PASSED_ON:
        return True
    return name.startswith(PASSED_ON_PREFIXES) and not any(word in name for word in SECRET_WORDS)
