from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from ts.protocol import otf_message_handler

from marctl_handlers.torchserve.worker_socket import read_in_pieces


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_retrieve_buffer", "_retrieve_int"):
        monkeypatch.setattr(otf_message_handler, name, getattr(otf_message_handler, name))
    read_in_pieces()


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, worker = socket.socketpair()
    with server, worker:
        yield server, worker


def text(value: bytes) -> bytes:
    return struct.pack("!i", len(value)) + value


def message(bodies: list[bytes]) -> bytes:
    """An inference message as ModelRequestEncoder.java writes it."""
    end = struct.pack("!i", -1)
    requests = (
        text(b"id-%d" % i)
        + (text(b"x-request-id") + text(b"abc") + text(b"empty") + text(b""))
        + end
        + (text(b"body") + text(b"application/octet-stream") + text(body))
        + end
        for i, body in enumerate(bodies)
    )
    return b"I" + b"".join(requests) + end


def decoded(messages: list[bytes], step: int, line: tuple[socket.socket, socket.socket]) -> list[object]:
    """What TorchServe's own code makes of messages that come in steps of so many bytes."""
    server, worker = line

    def send() -> None:
        for sent in messages:
            for start in range(0, len(sent), step):
                server.sendall(sent[start : start + step])

    sender = threading.Thread(target=send)
    sender.start()
    found = [otf_message_handler.retrieve_msg(worker) for _ in messages]
    sender.join()
    return found


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_messages_are_read_as_by_torchserve_itself(
    step: int, line: tuple[socket.socket, socket.socket], request: pytest.FixtureRequest
) -> None:
    sent = [message([b"one", b"", b"x" * 3000]), message([]), message([b"last"] * 5)]
    expected = decoded(sent, step, line)
    request.getfixturevalue("pieces")
    assert decoded(sent, step, line) == expected
    assert expected[0][1][2]["parameters"][0]["value"] == b"x" * 3000  # type: ignore[index]


@pytest.mark.usefixtures("pieces")
def test_body_larger_than_a_piece_is_whole(line: tuple[socket.socket, socket.socket]) -> None:
    body = bytes(range(256)) * 4000
    [(_, [request])] = decoded([message([body])], 1 << 20, line)  # type: ignore[misc]
    assert request["parameters"][0]["value"] == body


@pytest.mark.usefixtures("pieces")
def test_worker_ends_when_the_server_is_gone(line: tuple[socket.socket, socket.socket]) -> None:
    server, worker = line
    server.sendall(message([b"half"])[:20])
    server.close()
    with pytest.raises(SystemExit):
        otf_message_handler.retrieve_msg(worker)
