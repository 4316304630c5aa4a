"""Keeps the listening sockets of HAProxy, and HAProxy itself, alive on one machine.

Run by path as a script (`python -I -S haproxy_keeper.py FOLDER`) by `haproxy_start.py`, which
asks it for sockets over `FOLDER/keeper.sock` before it becomes HAProxy.

Design choices: while HAProxy is dead new connections wait in the queue of the socket; a HAProxy
that died without a successor is started again at once with its last configuration, and its manager
(an actor of Ray Serve) is killed, because it cannot reload a process that is not its child: Serve
starts another manager, whose HAProxy takes over; if none comes, Serve had stopped it on purpose,
and it is stopped again; everything ends with the Ray node.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FIRST_FD = 50
SUCCESSOR_S = 45.0
"""Seconds in which Serve starts another manager, if it wants to."""
STARTED_S = 1.0
MOST_REVIVALS = 10
"""In a row, without another manager in between."""


class Watched:
    """A process that is told apart from a later one with the same number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.fd = os.pidfd_open(pid)
        self.since = time.monotonic()

    def alive(self) -> bool:
        return not select.select([self.fd], [], [], 0)[0]

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, signal.SIGKILL)

    def close(self) -> None:
        os.close(self.fd)


def parent_of(pid: int) -> int:
    """Process number of the parent."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def listening(address: str) -> socket.socket:
    """A socket that listens at `host:port`; `*` is any interface. Raises OSError."""
    host, _, port = address.rpartition(":")
    host = "" if host == "*" else host.strip("[]")
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, int(port)))
        made.listen(socket.SOMAXCONN)
    except OSError:
        made.close()
        raise
    return made


def answers(admin: str) -> bool:
    """True if a HAProxy accepts on its admin socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(admin)
        except OSError:
            return False
    return True


@contextmanager
def only_one(folder: Path) -> Iterator[socket.socket]:
    """The keeper's own socket. Exits if another keeper answers there."""
    path = folder / "keeper.sock"
    with socket.socket(socket.AF_UNIX) as server:
        if answers(str(path)):
            sys.exit(0)
        path.unlink(missing_ok=True)
        server.bind(str(path))
        server.listen(8)
        yield server


class Keeper:
    """State of one node: sockets by address, HAProxy processes, their manager and the node."""

    def __init__(self) -> None:
        self.sockets: dict[str, socket.socket] = {}
        self.proxies: list[Watched] = []
        self.manager: Watched | None = None
        self.node: Watched | None = None
        self.admin: str | None = None
        self.command: list[str] = []
        self.addresses: list[str] = []
        self.revivals = 0
        # A keeper that nobody asks is of no use either.
        self.successor_by: float | None = time.monotonic() + SUCCESSOR_S

    def serve(self, caller: socket.socket) -> None:
        """Answer one HAProxy that is about to start."""
        caller.settimeout(5.0)
        asked = json.loads(caller.makefile("rb").readline())
        addresses: list[str] = asked["listen"]
        for gone in set(self.sockets) - set(addresses):
            self.sockets.pop(gone).close()
        try:
            for address in addresses:
                if address not in self.sockets:
                    self.sockets[address] = listening(address)
        except OSError as error:
            caller.sendall(f"{address}: {error}".encode())
            return
        self._watch(int(asked["pid"]), int(asked["manager"]))
        self.admin, self.command, self.addresses = asked["admin"], asked["command"], addresses
        socket.send_fds(caller, [b"ok"], [self.sockets[a].fileno() for a in addresses])

    def _watch(self, pid: int, manager: int) -> None:
        self.proxies.append(Watched(pid))
        if self.manager is None or self.manager.pid != manager or not self.manager.alive():
            self.manager = Watched(manager)
            self.revivals = 0
        if self.node is None:
            self.node = Watched(parent_of(manager))
        self.successor_by = None

    def watched(self) -> list[int]:
        """What to wait for."""
        node = [] if self.node is None else [self.node.fd]
        return [proxy.fd for proxy in self.proxies] + node

    def look(self) -> bool:
        """Drop what died, revive what is missed; False when all is over."""
        if self.node is not None and not self.node.alive():
            self.stop()
            return False
        alive = [proxy for proxy in self.proxies if proxy.alive()]
        dead = [proxy for proxy in self.proxies if proxy not in alive]
        # One that ended at once could not start; Serve reports why.
        missed = any(time.monotonic() - proxy.since > STARTED_S for proxy in dead)
        for proxy in dead:
            _reap(proxy)
        self.proxies = alive
        if missed and self.admin is not None and not answers(self.admin):
            self._revive()
        if self.successor_by is not None and time.monotonic() > self.successor_by:
            self.stop()
            return False
        return True

    def _revive(self) -> None:
        if self.revivals == MOST_REVIVALS:
            self.successor_by = time.monotonic()
            return
        self.revivals += 1
        pid = os.posix_spawn(
            self.command[0],
            self.command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, self.sockets[address].fileno(), FIRST_FD + i)
                for i, address in enumerate(self.addresses)
            ],
        )
        self.proxies.append(Watched(pid))
        print(f"haproxy died; started again as {pid}", flush=True)
        if self.manager is not None:
            self.manager.kill()
        self.successor_by = time.monotonic() + SUCCESSOR_S

    def stop(self) -> None:
        """End every HAProxy of the node."""
        for proxy in self.proxies:
            proxy.kill()


def _reap(proxy: Watched) -> None:
    with suppress(ChildProcessError):  # not every HAProxy is a child of the keeper
        os.waitpid(proxy.pid, os.WNOHANG)
    proxy.close()


def main(folder: Path) -> None:
    """Serve until the Ray node ends."""
    keeper = Keeper()
    with only_one(folder) as server:
        going = True
        while going:
            waited = [server.fileno(), *keeper.watched()]
            ready, _, _ = select.select(waited, [], [], 1.0)
            if server.fileno() in ready:
                caller, _ = server.accept()
                with caller, suppress(OSError, ValueError, KeyError):
                    keeper.serve(caller)
            going = keeper.look()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
