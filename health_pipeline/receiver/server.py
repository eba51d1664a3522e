"""The receiver as a server, with what a client may take of it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: How long a client may take from its connection to the end of its headers.
HEADER_SECONDS = 10.0
#: And from an answer to the end of the headers of its next request.
KEEP_ALIVE_SECONDS = 30.0
#: Connections at the same time. Where there are more, the one that keeps us waiting the longest goes.
MAX_CONNECTIONS = 512
#: What is still read of a body that was answered before its end, so that its sender gets to read the answer.
MAX_IGNORED_BYTES = 4 * 1024 * 1024
#: Of a request's line and headers.
MAX_HEADER_BYTES = 16 * 1024
_MAX_PIPELINED = 8


class BoundedProtocol(HttpToolsProtocol):
    """A connection that has to get on: uvicorn itself waits for ever, and for any number of them.

    It waits for its client from its start, and from each answer, to the end of the next request.
    """

    _waiting: ClassVar[dict[BoundedProtocol, None]] = {}
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _unanswered_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait(HEADER_SECONDS)
        if len(self.connections) > MAX_CONNECTIONS:
            # This one, where all the others have been read and are being worked on.
            next(iter(self._waiting)).transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._is_between_requests():
            self._unanswered_bytes += len(data)
        super().data_received(data)
        # A line that does not end is nothing to the parser yet; a body that was answered before its end is
        # read on, so that its sender gets to read the answer, and no further.
        if self._is_between_requests():
            rest_of_body = self.cycle is not None and self.cycle.more_body
            if self._unanswered_bytes > (MAX_IGNORED_BYTES if rest_of_body else MAX_HEADER_BYTES):
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError("too many requests before their answers")
        super().on_headers_complete()
        # How long the body takes is for the application to say.
        self._stop_timer()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if not self.cycle.more_body:
            self._waiting.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unanswered_bytes = 0
        if self._is_between_requests():
            self._wait(KEEP_ALIVE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._waiting.pop(self, None)
        super().connection_lost(exc)

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEADER_BYTES:
            # The parser takes it for a malformed request, and the client is told so.
            raise ValueError("the headers are too long")

    def _wait(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._cut)
        self._waiting.pop(self, None)
        self._waiting[self] = None

    def _cut(self) -> None:
        # An answer that is not read would hold the connection.
        (self.transport.abort if self.transport.get_write_buffer_size() else self.transport.close)()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def serve(app: Any, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; what is being answered is answered. Raises OSError where the port is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise OSError(f"the receiver cannot listen on {host} port {port}: {error.strerror}") from None
        uvicorn.Server(server_config(app)).run(sockets=[listener])


def server_config(app: Any) -> uvicorn.Config:
    """How uvicorn serves the receiver."""
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(KEEP_ALIVE_SECONDS),
        timeout_graceful_shutdown=10,
    )
