"""A TCP proxy in front of an HTTP service that misbehaves on request.

Modes: "pass"; "slow": every piece waits; "busy": requests are answered 503 and not passed on;
"cut": requests are passed on and their answers dropped, so that the client cannot know; "away":
connections are closed at once.
"""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType

MODES = ("pass", "slow", "busy", "cut", "away")
_BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class FaultyProxy:
    """Context manager; `url` is what clients use, `mode` may change at any time."""

    def __init__(self, port: int, delay_s: float = 0.3) -> None:
        self.mode = "pass"
        self.faults = 0
        self._target = ("127.0.0.1", port)
        self._delay_s = delay_s
        self._server = socket.create_server(("127.0.0.1", 0))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if self.mode == "away":
                self.faults += 1
                return
            try:
                with socket.create_connection(self._target) as service:
                    back = threading.Thread(target=self._back, args=(service, client), daemon=True)
                    back.start()
                    self._forth(client, service)
                    back.join(5)
            except OSError:
                self.faults += 1

    def _forth(self, client: socket.socket, service: socket.socket) -> None:
        while data := client.recv(1 << 16):
            if self.mode == "busy":
                self.faults += 1
                client.sendall(_BUSY)
                break
            self._wait()
            service.sendall(data)
        service.shutdown(socket.SHUT_WR)

    def _back(self, service: socket.socket, client: socket.socket) -> None:
        try:
            while data := service.recv(1 << 16):
                self._wait()
                if self.mode == "cut":
                    self.faults += 1
                    break
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
        except OSError:
            self.faults += 1

    def _wait(self) -> None:
        if self.mode == "slow":
            self.faults += 1
            time.sleep(self._delay_s)
