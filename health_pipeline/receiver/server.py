"""The receiver as a server, with what a client may take of it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

#: How long a client may take from its connection to the end of its headers.
HEADER_SECONDS = 10.0
#: Connections at the same time; more are answered 503.
_MAX_CONNECTIONS = 512
_MAX_HEADER_BYTES = 16 * 1024


class _TimedProtocol(H11Protocol):
    """A connection that says nothing is cut: uvicorn itself waits for ever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._first = asyncio.get_running_loop().call_later(HEADER_SECONDS, self._cut)

    def _cut(self) -> None:
        if self.cycle is None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._first.cancel()
        super().connection_lost(exc)


def serve(app: Any, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; what is being answered is answered. Raises OSError where the port is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise OSError(f"the receiver cannot listen on {host} port {port}: {error.strerror}") from None
        config = uvicorn.Config(
            app,
            http=_TimedProtocol,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=10,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        )
        uvicorn.Server(config).run(sockets=[listener])
