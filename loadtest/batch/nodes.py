"""A batch job on two Ray nodes, of which one is killed while it predicts.

    python -m loadtest.batch.nodes

Both nodes are on this machine, on loopback, with a core each, and take no word without a token. When a quarter of the
units are done, all processes of the second node get SIGKILL. The job must end by itself, with every row once. One JSON
line tells it.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from loadtest.batch.jobs import actors, predictions, start, tree
from tests.batch_archives import doubling_archive

HOSTS = "127.0.0.2", "127.0.0.3"
"""Ray takes 127.0.0.1 for a name of the machine's outer address."""
ROWS, UNIT_ROWS, PAUSE_S = 20_000, 512, 0.004
WAIT_S = 900.0
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def main() -> None:
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="nd-", dir="/tmp") as work:
        folder, port = Path(work), free_port()
        rows = folder / "rows.parquet"
        pq.write_table(pa.table({"id": range(ROWS), "value": range(20, ROWS + 20)}), rows)
        archive, output = doubling_archive(folder / "slow", pause_s=PAUSE_S), folder / "out"
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}/ray"]
        address = f"{HOSTS[0]}:{port}"
        with node(HOSTS[0], *head), node(HOSTS[1], f"--address={address}") as second:
            process = start(archive, [rows], output, "--key", "id", "--unit-rows", str(UNIT_ROWS), "--address", address)
            wait_for(output, ROWS // UNIT_ROWS // 4, process)
            lost = actors(second)
            for each in list(tree(second)):
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGKILL)
            out, err = process.communicate(timeout=WAIT_S)
        table = predictions(output)
        told = {"nodes": 2, "actors_lost": len(lost), "code": process.returncode, "rows": len(table)}
        equal = table["id"].to_pylist() == list(range(ROWS))
        print(json.dumps(told | {"every_row_once": equal, "told": err.strip().splitlines()[-1:], "result": bool(out)}))


@contextmanager
def node(host: str, *options: str) -> Iterator[psutil.Process]:
    """A Ray node with one core, in the foreground of a process that is ended with all below it."""
    own = ["--num-cpus=1", f"--node-ip-address={host}", "--object-store-memory=80000000", "--block"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *own]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = psutil.Process(process.pid)
    try:
        deadline = time.monotonic() + WAIT_S
        while not any("raylet" in each.name() for each in tree(found)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("a Ray node does not start")
            time.sleep(0.2)
        time.sleep(5)
        yield found
    finally:
        for each in list(tree(found)):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def wait_for(output: Path, parts: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while len(list((output / "predictions").glob("part-*"))) < parts:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the job ended early: {process.communicate()}")
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
