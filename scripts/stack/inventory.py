"""What TorchServe has registered, as this process knows it, and the steps that take something out of it."""

from __future__ import annotations

from contextlib import suppress

from marctl.core.errors import UserError
from marctl.core.explainers import explainer_of, is_explainer
from marctl.core.shared import VERSION, address, is_shared
from marctl.stack import shared, versions
from marctl.stack.management import NoSuchVersion, Served
from marctl.stack.registered import Found
from marctl.stack.routing import Key
from marctl.stack.store import forget_unpacked
from marctl.stack.versions import Server
from marctl_handlers.shared.members import Member

MEMBER_DRAIN_S = 1.0
"""For the requests that were under way to a version in a shared worker when its routes were taken away."""


class ServerGone(UserError):
    """TorchServe ended while it was needed."""


class Inventory:
    """Everything that is registered, by its key; empty of knowledge until it has looked."""

    def __init__(self) -> None:
        self._found: dict[Key, Found] | None = None
        self._defaults: dict[str, str] = {}
        """Each model's default version, as TorchServe was told or told itself."""

    @property
    def known(self) -> bool:
        """Whether TorchServe was asked since it started."""
        return self._found is not None

    @property
    def all(self) -> dict[Key, Found]:
        """Raises ServerGone where there is no server by now."""
        if self._found is None:
            raise ServerGone("TorchServe has ended")
        return self._found

    @property
    def so_far(self) -> dict[Key, Found]:
        """As `all`, and empty where nothing is known."""
        return self._found or {}

    def forget(self) -> None:
        """There is no TorchServe, or another one."""
        self._found = None

    def look(self, server: Server) -> None:
        """Ask TorchServe what it has."""
        self._defaults.clear()
        found: dict[Key, Found] = {}
        for model in server.management.models():
            with suppress(NoSuchVersion):
                for served in server.management.versions(model):
                    there = Found.of(served, trusted=served.ready >= served.asked)
                    found[model, served.version] = there
                    if is_shared(model):
                        found |= members_of(server, there)
        self._found = found

    def set_default(self, server: Server, model: str, version: str) -> None:
        """TorchServe's own, for those who ask it without a version."""
        there = self.all.get((model, version))
        if there is None or there.member or self._defaults.get(model) == version:
            return
        if server.management.default_version(model) != version:
            server.management.set_default(model, version)
        self._defaults[model] = version

    def members(self, worker: str) -> list[Member]:
        """The versions in a shared worker, by its name."""
        return [each.member for each in self.all.values() if each.member and each.worker == worker]

    def addresses(self) -> dict[Key, str]:
        """Where in the server the versions of shared workers are."""
        return {
            key: address(found.worker, found.member.model, found.member.version)
            for key, found in self.all.items()
            if found.member
        }

    def tell_members(self, server: Server, worker: str) -> None:
        """Its list to a shared worker, and its processes to each on it; nothing to do if it is not there any more."""
        there = self.all.get((worker, VERSION))
        if there is not None:
            shared.write_members(shared.folder_of(there.served, server.unpacked), self.members(worker))
            self.see_members(there.served)

    def see_members(self, served: Served) -> None:
        """What TorchServe tells of a shared worker, to its versions."""
        for key, each in self.all.items():
            if each.member and each.worker == served.model:
                each.see(shared.as_member(served, key, each.member))

    def lose(self, key: Key) -> None:
        """Somebody else unregistered it; versions in a shared worker must answer again."""
        del self.all[key]
        for member in self.all.values():
            if member.worker == key[0]:
                member.doubt()

    def drain(self, server: Server, there: Found) -> None:
        """Until the requests that wait for it are answered, for whom it gets no more."""
        if there.member:  # its queue is others', too, and never empty
            server.pause(MEMBER_DRAIN_S)
        else:
            versions.drain(server, there.served)

    def remove(self, server: Server, key: Key) -> None:
        """It may never have been registered; those that explain a version go before it."""
        for each in ((explainer_of(key[0]), key[1]), key):
            there = self.all.pop(each, None)
            if there is not None and there.member is not None:
                self.tell_members(server, there.worker)
                forget_unpacked(server.unpacked, there.served.digest, there.served.archive)
                continue
            served = server.served(*each)
            if served is not None:
                versions.remove(server, served)
            self._defaults.pop(each[0], None)


def members_of(server: Server, worker: Found) -> dict[Key, Found]:
    """The versions of a shared worker that was there before."""
    served, explain = worker.served, is_explainer(worker.served.model)
    found: dict[Key, Found] = {}
    for member in shared.members_in(served, server.unpacked):
        key = (explainer_of(member.model) if explain else member.model, member.version)
        described = shared.as_member(served, key, member)
        found[key] = Found.of(described, trusted=worker.trusted, member=member, worker=served.model)
    return found
