"""Who takes part: how each is installed, started, asked and understood."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marctl.stack.java import find_java
from marctl.stack.ports import free_port
from marctl.stack.torchserve import server_home

SERVERS = Path(__file__).with_name("servers")
PROJECT = Path(__file__).parents[2]
MODEL = "mcqa"


@dataclass(frozen=True)
class Site:
    """What one start of one server may use. `folder` is empty and its own."""

    folder: Path
    archive: Path
    model_folder: Path
    python: Path
    port: int
    recipe: Path
    """MODEL/VERSION folder that the archive was built from."""

    @property
    def working_folder(self) -> Path:
        """Our own stack reads its settings files from the project; the others find nothing."""
        return PROJECT if self.python == Path(sys.executable) else self.folder

    def write(self, name: str, content: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path


Command = Callable[[Site], list[str]]


@dataclass(frozen=True)
class Contender:
    """`wrap` makes a server's request of a question's JSON, `unwrap` the answer of a response's body."""

    name: str
    title: str
    command: Command
    path: str = "/predict"
    packages: tuple[str, ...] = ()
    """Empty: the environment of this project will do."""
    wrap: Callable[[bytes], bytes] = lambda body: body
    unwrap: Callable[[bytes], dict[str, Any]] = json.loads
    environ: dict[str, str] = field(default_factory=dict)
    marker: bytes = b"prediction"
    sitecustomize: Path | None = None
    """Run at the start of every interpreter of its environment."""
    has_model: bool = True
    """Without one there is no answer to check; it shows what is left of a request's cost."""


def python_file(name: str) -> Command:
    return lambda site: [str(site.python), str(SERVERS / f"{name}_server.py")]


def marctl_up(*options: str) -> Command:
    """The stack in the foreground, with nothing but the version that is compared."""

    def command(site: Site) -> list[str]:
        recipes = site.folder / "recipes" / MODEL
        recipes.mkdir(parents=True)
        (recipes / site.recipe.name).symlink_to(site.recipe.resolve())
        up = [sys.executable, "-c", "from marctl.cli import main; main(prog_name='marctl')", "up", *options]
        up += ["--state", str(site.folder / "state"), "--recipes", str(recipes.parent)]
        up += ["--store", str(site.archive.parent), "--management-port", "0", "--metrics-port", "0"]
        return up + (
            ["--port", str(site.port)]
            if "--no-gateway" in options
            else ["--port", "0", "--gateway-port", str(site.port)]
        )

    return command


def stock_torchserve(batch: str, handler: str = "torchserve_handler.py") -> Command:
    """As its documentation says: an archive by torch-model-archiver, all settings but the ports left alone."""

    def command(site: Site) -> list[str]:
        store = site.folder / "store"
        store.mkdir()
        weights = ",".join(str(path) for path in site.model_folder.iterdir())
        config = site.write("model-config.yaml", f"minWorkers: 1\nmaxWorkers: 1\n{batch}")
        archiver = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", MODEL, "--version", "1.0"]
        archiver += ["--handler", str(SERVERS / handler), "--extra-files", weights]
        archiver += ["--config-file", str(config), "--export-path", str(store)]
        subprocess.run(archiver, check=True, capture_output=True, env=os.environ | {"TMPDIR": str(site.folder)})
        ports = {name: free_port() for name in ("management", "metrics")}
        lines = [f"inference_address=http://127.0.0.1:{site.port}"]
        lines += [f"{name}_address=http://127.0.0.1:{port}" for name, port in ports.items()]
        lines += [f"grpc_{name}_port={free_port()}" for name in ("inference", "management")]
        settings = site.write("config.properties", "\n".join(lines) + "\n")
        java = find_java().path
        home = server_home()
        # What its `torchserve --start` script runs; the script would leave a pid file that other servers trip over.
        return [
            *(str(java), f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={site.folder}", "-cp"),
            *(f"{home}/ts/frontend/*", "org.pytorch.serve.ModelServer", "--python", sys.executable),
            *("-f", str(settings), "-s", str(store), "-m", f"{MODEL}={MODEL}.mar", "-ncs", "--disable-token-auth"),
        ]

    return command


def mosec(site: Site) -> list[str]:
    options = ["--address", "127.0.0.1", "--port", str(site.port), "--log-level", "warning", "--timeout", "60000"]
    return [*python_file("mosec")(site), *options]


def ray(site: Site) -> list[str]:
    return [*python_file("ray")(site), str(site.folder)]


def bentoml(site: Site) -> list[str]:
    listen = ["--host", "127.0.0.1", "--port", str(site.port), "--working-dir", str(SERVERS)]
    return [str(site.python), "-m", "bentoml", "serve", "bentoml_server:MultipleChoice", *listen, "--quiet"]


def mlserver(site: Site) -> list[str]:
    settings: dict[str, Any] = {
        "host": "127.0.0.1",
        "http_port": site.port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
    }
    settings |= {"parallel_workers": 1, "debug": False}
    model: dict[str, Any] = {"name": MODEL, "implementation": "mlserver_server.MultipleChoice"}
    model |= {"max_batch_size": 32, "max_batch_time": 0.005}
    site.write("settings.json", json.dumps(settings))
    site.write("model-settings.json", json.dumps(model))
    return [str(site.python), "-m", "mlserver.cli.main", "start", str(site.folder)]


def pytriton(site: Site) -> list[str]:
    return [*python_file("pytriton")(site), str(free_port()), str(free_port())]


def tensor(name: str, shape: list[int]) -> Callable[[bytes], bytes]:
    """A question as the one text of a V2 protocol tensor."""

    def wrap(body: bytes) -> bytes:
        content = {"name": name, "shape": shape, "datatype": "BYTES", "data": [body.decode()]}
        return json.dumps({"inputs": [content]}).encode()

    return wrap


def first_tensor(body: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(json.loads(body)["outputs"][0]["data"][0])
    return answer


OURS = f"/predictions/{MODEL}"
CONTENDERS = (
    Contender("ours", "this project, through the gateway", marctl_up(), OURS),
    Contender("ours-no-gateway", "this project, TorchServe alone", marctl_up("--no-gateway"), OURS),
    Contender("ours-no-redis", "this project, through the gateway, cache and log off", marctl_up("--no-redis"), OURS),
    Contender(
        "ours-no-redis-no-gateway",
        "this project, TorchServe alone, cache and log off",
        marctl_up("--no-redis", "--no-gateway"),
        OURS,
    ),
    Contender("torchserve", "TorchServe, its own example's way, as shipped", stock_torchserve(""), OURS),
    Contender(
        "torchserve-batching",
        "TorchServe, its own example's way, batches of 32 within 5 ms",
        stock_torchserve("batchSize: 32\nmaxBatchDelay: 5\n"),
        OURS,
    ),
    Contender(
        "torchserve-empty",
        "TorchServe, no model: a constant answer, batches of 32 within 1 ms",
        stock_torchserve("batchSize: 32\nmaxBatchDelay: 1\n", "empty_handler.py"),
        OURS,
        has_model=False,
    ),
    Contender("mosec", "mosec", mosec, "/inference", ("mosec==0.9.8",)),
    Contender("litserve", "LitServe", python_file("litserve"), packages=("litserve==0.2.19",)),
    Contender(
        "mlserver",
        "MLServer",
        mlserver,
        f"/v2/models/{MODEL}/infer",
        ("mlserver==1.7.1", "uvloop<0.22"),
        tensor("question", [1]),
        first_tensor,
    ),
    Contender(
        "triton",
        "Triton (pytriton)",
        pytriton,
        f"/v2/models/{MODEL}/infer",
        ("nvidia-pytriton==0.7.0",),
        tensor("question", [1, 1]),
        first_tensor,
        sitecustomize=SERVERS / "triton_sitecustomize.py",
    ),
    Contender(
        "ray-serve",
        "Ray Serve, optimised for throughput",
        ray,
        packages=("ray[serve]==2.60.0",),
        environ={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    ),
    Contender(
        "bentoml",
        "BentoML",
        bentoml,
        packages=("bentoml==1.4.39",),
        wrap=lambda body: b'{"questions": [%s]}' % body,
        unwrap=lambda body: json.loads(body)[0],
        environ={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Contender(
        "fastapi",
        "FastAPI, no batching",
        python_file("fastapi"),
        packages=("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
    ),
)
