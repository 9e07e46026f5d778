"""The processes of one stack: Redis, TorchServe and Envoy. Found again by identity, started, and stopped in order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psutil
from msgspec import Struct

from marctl.core.errors import UserError
from marctl.core.http import HOST
from marctl.core.process import Identity, reap
from marctl.gateway.envoy import Envoy
from marctl.gateway.policies import Served, Traffic
from marctl.gateway.settings import GatewaySettings, read_settings
from marctl.gateway.traffic import NO_ADDRESSES, Addresses
from marctl.stack import autoscaler, batch_service, redis_server
from marctl.stack.autoscaler import AutoscalerProcess
from marctl.stack.batch_service import BatchService
from marctl.stack.java import find_java
from marctl.stack.ports import choose_ports, free_port
from marctl.stack.redis_server import INSTANCES, URL_VARIABLE, Instance
from marctl.stack.state import DamagedState, Gateway, Redis, Running, State
from marctl.stack.torchserve import TorchServe, find_servers, make_temp
from marctl.stack.versions import Notify
from marctl_handlers.redis.link import FEATURES_URL_VARIABLE

TORCHSERVE_PORTS = ("torchserve_metrics", "grpc_inference", "grpc_management")
ENVOY_PORTS = ("admin",)
PORT_ATTEMPTS = 3


class Request(Struct, frozen=True):
    """What `marctl up` was asked for. Ports may be 0 for any free one."""

    recipes: str
    store: str
    inference_port: int
    management_port: int
    metrics_port: int
    workers: int | None = None
    gateway_port: int | None = None
    """None for no gateway."""
    gateway_config: str | None = None
    upstreams: tuple[str, ...] = ()
    """Further TorchServe servers behind the gateway, on top of the configuration's."""
    batch_config: str | None = None
    """Of the batch service; None for none."""
    autoscale: str | None = None
    """Path of the autoscaler's settings, empty for the defaults; None for no autoscaler."""
    redis: bool = True
    """Whether the workers may use one."""
    follow: str | None = None
    """Place of the document that this node follows; None for one that is changed by commands."""
    trusted: str | None = None
    """Folder of the keys that must have signed every archive; None for what held before."""
    allow_unsigned: bool = False
    """Whether archives need no signature from now on."""
    node: str | None = None
    """Its name among the nodes that follow."""


class Servers:
    """What runs of one stack. `running` is kept in running.json, and written before anything starts."""

    def __init__(self, state: State, request: Request, notify: Notify) -> None:
        self.state = state
        self.request = request
        self.notify = notify
        self.settings = GatewaySettings()
        found = self._adopted()
        self.adopted = found is not None
        """Whether it runs already, started by a reconciler before this one."""
        self.running = found or self._begun()

    def _adopted(self) -> Running | None:
        """The stack that runs already, where a reconciler before this one was killed; None if nothing is left of it."""
        running = readable(self.state, self.notify)
        servers = find_servers(self.state)
        if running is None or not (servers or gateway_of(self.state, running, GatewaySettings()).find()):
            stop_stack(self.state)
            return None
        self.settings = self.state.gateway_settings()
        server = next((Identity.of(process.pid) for process in servers), None)
        running = msgspec.structs.replace(running, server=server)
        if running.gateway is not None:
            envoys = gateway_of(self.state, running, self.settings).find()
            found = next((Identity.of(process.pid) for process in envoys), None)
            running = msgspec.structs.replace(running, gateway=msgspec.structs.replace(running.gateway, process=found))
        self.notify("taking over the stack that runs already, with its addresses")
        self.state.save_running(running)
        return running

    def _begun(self) -> Running:
        """Addresses and folders of a stack that starts."""
        request = self.request
        config = Path(request.gateway_config) if request.gateway_config else None
        settings = read_settings(config, request.upstreams)
        self.settings = msgspec.structs.replace(settings, probe_port=settings.probe_port or free_port())
        if request.batch_config is not None:
            self.settings = msgspec.structs.replace(self.settings, batch=f"{HOST}:{free_port()}")
        ports = choose_ports(
            request.inference_port, request.management_port, request.metrics_port, request.gateway_port or 0
        )
        envoy, urls = self.state.envoy(ports, self.settings), ports.torchserve
        gateway = Gateway(envoy.address, envoy.admin, config=request.gateway_config)
        running = Running(
            ports=ports,
            inference=urls["inference"],
            management=urls["management"],
            metrics=urls["metrics"],
            store=str(Path(request.store).resolve()),
            temp=str(make_temp(self.state)),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            gateway=None if request.gateway_port is None else gateway,
        )
        self.state.save_gateway_settings(self.settings)
        self.state.save_running(running)
        return running

    @property
    def torchserve(self) -> TorchServe:
        running = self.running
        found = {URL_VARIABLE: running.redis, FEATURES_URL_VARIABLE: running.features}
        urls = {name: server.url for name, server in found.items() if server is not None}
        return TorchServe(self.state, running.ports, Path(running.store), Path(running.temp), urls)

    @property
    def envoy(self) -> Envoy:
        return self.state.envoy(self.running.ports, self.settings)

    def start_torchserve(self) -> None:
        """With no model. Raises StartFailed, PortTaken or NoJava."""
        java = find_java()
        self.notify(f"starting TorchServe on Java {java.major}, port {self.running.ports.inference}")
        self._keep(server=self._start(TORCHSERVE_PORTS, lambda: self.torchserve.start(java, os.environ)))

    def torchserve_alive(self) -> bool:
        return alive(self.running.server)

    def start_envoy(self, served: Served, policies: Mapping[str, Traffic], addresses: Addresses = NO_ADDRESSES) -> None:
        """Before what is served. Raises StartFailed, PortTaken or GatewayFailed."""
        assert self.running.gateway is not None
        self.notify(f"starting Envoy, port {self.running.ports.gateway}")
        host = self.settings.address.strip("[]")
        self.running.ports.refuse_taken("gateway", host=host)
        process = self._start(ENVOY_PORTS, lambda: self.envoy.start(served, policies, addresses))
        # Of another port, perhaps, than it was to have.
        found = {"address": self.envoy.address, "admin": self.envoy.admin, "process": process}
        self._keep(gateway=msgspec.structs.replace(self.running.gateway, **found))

    def _start(self, names: Sequence[str], start: Callable[[], Identity]) -> Identity:
        """A server, with other ports of its own where somebody took them since they were chosen.

        A stack that starts beside this one looks for free ports in the same places, and holds none before it starts.
        """
        for _ in range(PORT_ATTEMPTS):
            self._keep(ports=self.running.ports.moved(*names))
            try:
                return start()
            except UserError:
                if self.running.ports.moved(*names) == self.running.ports:
                    raise
        return start()

    def secret_files(self) -> list[Path]:
        """Where the gateway's keys and certificate come from; empty if they come from nowhere."""
        config = self.running.gateway.config if self.running.gateway else None
        if config is None or not (self.settings.api_keys or self.settings.tls):
            return []
        tls = self.settings.tls
        return [Path(config), *((Path(tls.certificate), Path(tls.key)) if tls else ())]

    def renew_secrets(self) -> None:
        """Take the API keys that the operator's file names by now, and look at the certificate. Raises UserError."""
        found = read_settings(self.secret_files()[0])
        if bool(found.api_keys) != bool(self.settings.api_keys):
            raise UserError("whether the gateway asks for keys is decided at its start: marctl down, marctl up")
        if found.api_keys != self.settings.api_keys:
            self.settings = msgspec.structs.replace(self.settings, api_keys=found.api_keys)
            self.state.save_gateway_settings(self.settings)

    def envoy_alive(self) -> bool:
        """True, too, where there is to be none."""
        return self.running.gateway is None or alive(self.running.gateway.process)

    def start_redis(self, instance: Instance) -> None:
        """One of those for the workers. Raises RedisFailed."""
        redis = redis_server.provide(instance, self.state, Path(self.running.temp), os.environ)
        self._keep(**{instance.place: redis})
        if not redis_server.answers(redis.url):
            where = redis_server.shown(redis.url)
            self.notify(f"warning: {instance.name} does not answer at {where}; the workers will go on trying")

    def redis(self, instance: Instance) -> Redis | None:
        """None where there is none, or none yet."""
        found: Redis | None = getattr(self.running, instance.place)
        return found

    def redis_alive(self, instance: Instance) -> bool:
        """True, too, for one that the environment names, and where there is to be none."""
        redis = self.redis(instance)
        if redis is None:
            return not self.request.redis
        return redis.process is None or alive(redis.process)

    @property
    def batch(self) -> BatchService | None:
        """None where there is to be none, as there is without a gateway's settings to say where."""
        if self.request.batch_config is None or self.settings.batch is None:
            return None
        port = int(self.settings.batch.rpartition(":")[2])
        return BatchService(self.request.batch_config, self.running.store, port)

    def start_batch(self) -> None:
        """Raises UserError."""
        assert self.batch is not None
        self.notify(f"starting the batch service, port {self.batch.port}")
        self._keep(batch=self.batch.start(self.state))

    def batch_alive(self) -> bool:
        """True, too, where there is to be none."""
        return self.batch is None or alive(self.running.batch)

    def start_autoscaler(self) -> None:
        """Raises UserError."""
        assert self.request.autoscale is not None
        self.notify("starting the autoscaler")
        autoscaler.stop(self.state)  # one that outlived the reconciler before this one may have other settings
        self._keep(autoscaler=AutoscalerProcess(self.request.autoscale).start(self.state))

    def autoscaler_alive(self) -> bool:
        """True, too, where there is to be none."""
        return self.request.autoscale is None or alive(self.running.autoscaler)

    def _keep(self, **changes: Any) -> None:
        self.running = msgspec.structs.replace(self.running, **changes)
        self.state.save_running(self.running)


def alive(identity: Identity | None) -> bool:
    """Whether a process runs; one of our children that has ended is taken off the table."""
    if identity is None:
        return False
    if identity.alive:
        return True
    reap(identity.pid)
    return False


def readable(state: State, notify: Notify) -> Running | None:
    """running.json, or None for one that is missing or damaged."""
    try:
        return state.running()
    except DamagedState as err:
        notify(f"warning: {err}")
        return None


def gateway_of(state: State, running: Running, settings: GatewaySettings) -> Envoy:
    return state.envoy(running.ports, settings)


def stop_stack(state: State) -> bool:
    """Close the gateway, stop everything and remove its temp folder; whether there was anything to stop.

    Requests under way are answered first. Whatever the files say, and however full the disk is, no process of this
    state folder is left.
    """
    running = readable(state, lambda _: None)
    servers = find_servers(state)
    temps = {Path(running.temp)} if running else {state.folder / "tmp"}
    temps |= {temp for process in servers if (temp := temp_of(process))}
    there = bool(servers)
    there = autoscaler.stop(state) or there
    try:
        there = stop_gateway(state, running, drain=bool(servers)) or there
    finally:
        there = batch_service.stop(state) or there
        try:
            for temp in temps:
                store = Path(running.store) if running else temp
                ports = running.ports if running else choose_ports(0, 0, 0)
                TorchServe(state, ports, store, temp, {}).stop()
        finally:
            # After the workers, so that the last answers are in what it saves.
            for instance in INSTANCES:
                there = stop_redis(state, getattr(running, instance.place, None), instance) or there
            for temp in temps:
                shutil.rmtree(temp, ignore_errors=True)
            state.forget_running()
    return there


def stop_gateway(state: State, running: Running | None, *, drain: bool) -> bool:
    """Whether there was one."""
    settings = GatewaySettings()
    with suppress(UserError):
        settings = state.gateway_settings()
    envoy = state.envoy(running.ports if running else choose_ports(0, 0, 0), settings)
    found = bool(envoy.find())
    envoy.stop(drain=drain and running is not None)
    return found


def stop_redis(state: State, redis: Redis | None, instance: Instance) -> bool:
    """Whether our own one ran."""
    found = redis is not None and redis_server.find(state, redis) is not None
    try:
        if redis is not None:
            redis_server.stop(state, redis, instance)
    finally:
        redis_server.remove_leftovers(state, instance)
    return found


def temp_of(process: psutil.Process) -> Path | None:
    """The temp folder that a TorchServe was started with."""
    flag = "-Djava.io.tmpdir="
    with suppress(psutil.Error):
        return next((Path(word.removeprefix(flag)) for word in process.cmdline() if word.startswith(flag)), None)
    return None
