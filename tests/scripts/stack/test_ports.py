from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec
import pytest

from marctl.core.errors import UserError
from marctl.core.http import HOST
from marctl.stack.ports import PortTaken, choose_ports, is_free


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_is_named_with_the_option_that_moves_it(taken: int) -> None:
    with pytest.raises(PortTaken, match=rf"port {taken} on 127\.0\.0\.1 is taken.*--management-port"):
        choose_ports(0, taken, 0)


def test_a_port_that_was_taken_since_it_was_chosen_is_named_with_its_option(taken: int) -> None:
    ports = msgspec.structs.replace(choose_ports(0, 0, 0), gateway=taken)
    with pytest.raises(PortTaken, match=rf"port {taken} on .* choose another one with --gateway-port"):
        ports.refuse_taken("gateway")


def test_an_inner_port_that_was_taken_since_it_was_chosen_moves_and_the_others_stay(taken: int) -> None:
    chosen = choose_ports(0, 0, 0)
    before = msgspec.structs.replace(chosen, admin=taken)
    after = before.moved("admin", "grpc_inference")
    assert after.admin != taken
    assert is_free(after.admin)
    assert msgspec.structs.replace(after, admin=taken) == before
    assert chosen.moved("admin") == chosen


def test_equal_ports_are_refused() -> None:
    with pytest.raises(UserError, match="must differ: --port 9080, --management-port 9080"):
        choose_ports(9080, 9080, 0)


def test_zero_gives_free_ports_that_differ() -> None:
    ports = choose_ports(0, 0, 0)
    found = [ports.inference, ports.management, ports.metrics, ports.grpc_inference, ports.grpc_management]
    assert len(set(found)) == 5
    assert all(map(is_free, found))


def test_a_second_stacks_grpc_ports_move_out_of_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marctl.stack.ports.is_free", lambda port: port not in {7070, 7071})
    ports = choose_ports(9080, 9081, 9082)
    assert (ports.grpc_inference, ports.grpc_management) == (7072, 7073)
