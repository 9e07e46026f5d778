"""How a worker reads what TorchServe sends: in large pieces.

TorchServe's own code takes each integer and each string of a message by a system call of its own, some fifty for a
request (ts/protocol/otf_message_handler.py, 0.12.0).
"""

from __future__ import annotations

import logging
import socket
import struct
import sys

KNOWN_VERSION = "0.12.0"
PIECE_BYTES = 1 << 18
INTEGER = struct.Struct("!i")


class Reader:
    """Takes the place of the message handler's reading functions, for the one connection that a worker has."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 0

    def take(self, connection: socket.socket, length: int) -> bytes:
        """The next `length` bytes; ends the worker, as TorchServe's own code does, when the server is gone."""
        end = self._at + length
        if end > len(self._data):
            self._receive(connection, end - len(self._data))
            end = length
        start, self._at = self._at, end
        return self._data[start:end]

    def take_integer(self, connection: socket.socket) -> int:
        """A signed 32-bit integer."""
        value: int = INTEGER.unpack(self.take(connection, INTEGER.size))[0]
        return value

    def _receive(self, connection: socket.socket, missing: int) -> None:
        """At least the missing bytes, and whatever else has come, behind what was not taken yet."""
        pieces = [self._data[self._at :]]
        while missing > 0:
            piece = connection.recv(max(PIECE_BYTES, missing))
            if not piece:
                logging.info("Frontend disconnected.")
                sys.exit(0)
            pieces.append(piece)
            missing -= len(piece)
        self._data = b"".join(pieces)
        self._at = 0


def read_in_pieces() -> None:
    """Install a Reader; to be called between two messages, as a handler's initialization is.

    It takes the place of private functions, so a server of another version keeps its own.
    """
    import ts
    from ts.protocol import otf_message_handler

    if ts.__version__ != KNOWN_VERSION:
        return
    reader = Reader()
    otf_message_handler._retrieve_buffer = reader.take
    otf_message_handler._retrieve_int = reader.take_integer
