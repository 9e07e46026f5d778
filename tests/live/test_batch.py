"""`marctl batch` on a real Ray: files in, predictions out, and what is left when it is ended at the wrong moment."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import requests

from loadtest.batch.jobs import actors, is_named, predictions, start, tree
from tests.batch_archives import doubling_archive
from tests.live.conftest import MARCTL, PROJECT

pytestmark = pytest.mark.live
ROWS = 3000
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives, one that answers at once and one that takes 2 ms a row, and rows in three formats."""
    made = tmp_path_factory.mktemp("batch")
    doubling_archive(made / "quick")
    doubling_archive(made / "slow", pause_s=0.002)
    (made / "in").mkdir()
    for i, write in enumerate((write_parquet, write_csv, write_jsonl)):
        write(made / "in", pa.table({"id": range(i * ROWS, (i + 1) * ROWS), "n": range(i * ROWS, (i + 1) * ROWS)}))
    return made


def write_parquet(folder: Path, table: pa.Table) -> None:
    pq.write_table(table.set_column(0, "id", table["id"].cast(pa.string())), folder / "a.parquet", row_group_size=700)


def write_csv(folder: Path, table: pa.Table) -> None:
    pacsv.write_csv(table, folder / "b.csv")


def write_jsonl(folder: Path, table: pa.Table) -> None:
    lines = [json.dumps({"id": str(row["id"]), "n": row["n"]}) for row in table.to_pylist()]
    (folder / "c.jsonl").write_text("\n".join([*lines[:-1], "nonsense", lines[-1]]) + "\n")


def archive(folder: Path, kind: str) -> str:
    return str(folder / kind / "store" / "doubling-1.0.mar")


def marctl_batch(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [*MARCTL, "batch", *map(str, arguments), "--json"]
    env = {**os.environ, **environ}
    return subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A job over all three files: its output folder and what the command told."""
    output = folder / "finished"
    done = marctl_batch(archive(folder, "quick"), folder / "in", output, "--map", "value=n", "--key", "id")
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    return output, json.loads(done.stdout)


def test_files_of_all_formats_become_one_table_with_keys(finished: tuple[Path, dict[str, Any]]) -> None:
    output, told = finished
    table = predictions(output)
    bad = {13, 14}
    wanted = [n for n in range(3 * ROWS) if n not in bad]
    assert table["doubled"].to_pylist() == [2 * n for n in wanted]
    assert table["id"].to_pylist() == [str(n) for n in wanted]
    assert told["rows"] == {"read": 3 * ROWS + 1, "selected": 3 * ROWS + 1, "predicted": 3 * ROWS - 2, "failed": 3}


def test_bad_rows_are_told_with_file_row_and_reason(finished: tuple[Path, dict[str, Any]]) -> None:
    errors = [json.loads(line) for line in (finished[0] / "errors.jsonl").read_text().splitlines()]
    assert [(Path(error["file"]).name, error["row"]) for error in errors] == [
        ("a.parquet", 13),
        ("a.parquet", 14),
        ("c.jsonl", ROWS - 1),
    ]
    assert all(error["reason"] for error in errors)


def test_the_manifest_names_counts_digests_and_settings(finished: tuple[Path, dict[str, Any]], folder: Path) -> None:
    manifest = json.loads((finished[0] / "manifest.json").read_text())
    assert manifest["model"] == "doubling"
    assert [Path(one["file"]).name for one in manifest["inputs"]] == ["a.parquet", "b.csv", "c.jsonl"]
    assert manifest["settings"]["mapping"] == {"value": "n"}
    assert len(manifest["digest"]) == len(manifest["outputs"][0]["sha256"]) == 64


def test_a_finished_job_is_not_computed_again(finished: tuple[Path, dict[str, Any]], folder: Path) -> None:
    output, told = finished
    done = marctl_batch(archive(folder, "quick"), folder / "in", output, "--map", "value=n", "--key", "id")
    assert "nothing is left to compute" in done.stderr
    assert json.loads(done.stdout)["finished_at"] == told["finished_at"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--map", "value=n"], "--key: was"),
        (["--map", "value=n", "--key", "id", "--limit", "5"], "--limit: was not given, is 5"),
        (["--map", "value=id", "--key", "id"], "--map: was"),
    ],
)
def test_another_job_in_the_same_folder_is_refused(
    finished: tuple[Path, dict[str, Any]], folder: Path, options: list[str], words: str
) -> None:
    done = marctl_batch(archive(folder, "quick"), folder / "in", finished[0], *options)
    assert done.returncode == 1
    assert words in done.stderr
    assert "--restart" in done.stderr
    assert json.loads(done.stdout)["error"] == "job_changed"


def test_a_folder_that_is_somebody_elses_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = marctl_batch(archive(folder, "quick"), folder / "in", tmp_path, "--map", "value=n", "--restart")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (1, "not_empty")
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_column_that_is_not_there_is_told_with_those_that_are(folder: Path, tmp_path: Path) -> None:
    done = marctl_batch(archive(folder, "quick"), folder / "in" / "b.csv", tmp_path / "out")
    assert "no column 'value'; there are: id, n. Say which column holds it: --map value=COLUMN" in done.stderr
    assert done.returncode == 1


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"id": range(8000), "value": range(20, 8020)}), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


@pytest.fixture
def begun(folder: Path, rows: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts the slow job over `rows`; each call once the one before has ended."""
    started: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        path = Path(archive(folder, "slow"))
        started.append(start(path, [rows], tmp_path / "out", "--key", "id", "--unit-rows", "512"))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def wait_for_parts(output: Path, count: int, process: subprocess.Popen[str]) -> set[Path]:
    deadline = time.monotonic() + TIMEOUT_S
    while len(found := set((output / "predictions").glob("part-*.parquet"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_killed_at_any_place_the_same_command_goes_on_and_nothing_is_computed_twice(
    begun: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process = begun()
    wait_for_parts(output, 2, process)
    command = psutil.Process(process.pid)
    assert only_loopback(command)
    actors(command)[0].kill()
    wait_for_parts(output, 6, process)
    below = [each for each in tree(command) if not is_named(each, "Agent")]
    command.kill()
    process.communicate()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive, "what computes ends with the command; Ray's agents, which do not, take a minute or two"
    kept = {path: path.stat().st_mtime_ns for path in (output / "predictions").glob("part-*.parquet")}
    again = begun()
    wait_for_parts(output, len(kept) + 1, again)
    _, err = begun().communicate(timeout=TIMEOUT_S)
    assert "another job works on" in err
    wait_until_done(output)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    table = predictions(output)
    assert table["id"].to_pylist() == list(range(8000))
    assert table["doubled"].to_pylist() == [2 * n for n in range(20, 8020)]


def wait_until_done(output: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not (output / "manifest.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def only_loopback(command: psutil.Process) -> bool:
    """Whether all of its processes listen where no other machine can ask."""
    found = [
        connection.laddr.ip
        for process in tree(command)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    addresses = [ipaddress.ip_address(ip) for ip in found]
    return bool(found) and all((getattr(a, "ipv4_mapped", None) or a).is_loopback for a in addresses)


def test_ctrl_c_leaves_what_is_done_and_says_so(begun: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    process = begun()
    wait_for_parts(tmp_path / "out", 1, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert "are done and kept; the same command goes on from there" in err
    assert "Traceback" not in err


def test_a_row_that_ends_the_process_stops_the_job_with_its_place(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"value": 1, "note": "deadly"}\n')
    done = marctl_batch(archive(folder, "quick"), path, tmp_path / "out", "--actors", "1")
    assert done.returncode == 1
    assert f"rows 0 to 0 of {path}" in done.stderr
    assert "times the process ended" in done.stderr


def test_gpus_that_are_not_there_are_not_waited_for(folder: Path, tmp_path: Path) -> None:
    """An actor that no GPU is left for would wait for ever."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"value": 1}\n')
    command = (archive(folder, "quick"), path, tmp_path / "out")
    told = marctl_batch(*command, "--gpus", "1", "--actors", "1", CUDA_VISIBLE_DEVICES="")
    assert (told.returncode, json.loads(told.stdout)["error"]) == (1, "no_room")
    assert "Ray finds 0" in told.stderr
    told = marctl_batch(*command, "--gpus", "1.5")
    assert (told.returncode, "a whole number of GPUs" in told.stderr) == (2, True)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An S3 server on loopback, with a bucket; the environment that finds it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            requests.get(url, timeout=1)
            break
        except requests.RequestException:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    environ = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    yield {**environ, "AWS_ENDPOINT_URL": url}
    server.terminate()
    server.wait()
    log.close()


def test_input_and_output_may_be_in_s3(folder: Path, s3: dict[str, str]) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=s3["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket")
    for path in (folder / "in").iterdir():
        client.upload_file(str(path), "bucket", f"in/{path.name}")
    arguments = (archive(folder, "quick"), "s3://bucket/in/*.csv", "s3://bucket/in/*.parquet", "s3://bucket/out")
    done = marctl_batch(*arguments, "--map", "value=n", "--key", "id", **s3)
    assert done.returncode == 0, done.stderr
    names = {item["Key"] for item in client.list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]}
    assert {"out/manifest.json", "out/errors.jsonl", "out/predictions/part-00000.parquet"} <= names
    parts = sorted(name for name in names if name.startswith("out/predictions/"))
    tables = [pq.read_table(pa.BufferReader(client.get_object(Bucket="bucket", Key=n)["Body"].read())) for n in parts]
    table = pa.concat_tables(tables)
    assert sorted(table["doubled"].to_pylist()) == [2 * n for n in range(2 * ROWS) if n not in (13, 14)]
    client.upload_file(str(folder / "in" / "c.jsonl"), "bucket", "in/b.csv")
    changed = marctl_batch(*arguments, "--map", "value=n", "--key", "id", **s3)
    assert changed.returncode == 1


def test_no_process_is_left(folder: Path) -> None:
    """After all of the above."""
    left = [process for process in psutil.process_iter() if is_named(process, str(folder))]
    assert left == []
