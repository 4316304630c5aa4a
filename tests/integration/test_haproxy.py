"""HAProxy for real, in the way Ray Serve starts it, in front of a small server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from flts_ray.config_serve import ServeConfig, TlsConfig
from flts_ray.local.haproxy_start import admin_socket, running_pid
from flts_ray.local.process import free_port
from flts_ray.local.ray_environment import haproxy_binary, haproxy_environment
from flts_ray.serve.asgi import ALWAYS
from tests.running import MARK, until

pytestmark = pytest.mark.integration
CHAIN = """
import signal, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
print(process.pid, flush=True)
process.wait()
signal.pause()
"""


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        told = json.dumps({k.lower(): v for k, v in self.headers.items()}).encode()
        body = told if self.path == "/told" else b"hello"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        if self.path == "/page":
            self.send_header("content-security-policy", "default-src 'self'")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests look at answers."""


@dataclass
class Node:
    """A machine with a starter, and what Ray would have rendered for it."""

    folder: Path
    backend: int
    port: int = field(default_factory=free_port)
    metrics: int = field(default_factory=free_port)
    serving: ServeConfig = field(default_factory=ServeConfig)
    chains: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "node" / "haproxy.cfg"

    def render(self, *, routes: bool = True) -> None:
        from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig
        from ray.serve._private.haproxy import ServerConfig as Server
        from ray.serve.config import HTTPOptions

        settings = HAProxyConfig(
            http_options=HTTPOptions(host="0.0.0.0", port=self.port),
            is_head=True,
            nbthread=1,
            socket_path=str(self.folder / "node" / "admin.sock"),
            server_state_base=str(self.folder / "node"),
            server_state_file=str(self.folder / "node" / "server-state"),
            metrics_enabled=False,
            metrics_port=self.metrics,
            bufsize=65536,
        )
        api = HAProxyApi(settings, config_file_path=str(self.config))
        if routes:
            server = Server("one", "127.0.0.1", self.backend)
            backend = BackendConfig("http-demo", "/", servers=[server], app_name="demo")
            backend.http_health_check_path = "/"
            api.set_backend_configs({"http-demo": backend})
        api._generate_config_file_internal()

    def start(self, *extra: str) -> tuple[int, int]:
        """Numbers of the manager and of HAProxy, below a process that stands for the Ray node."""
        environment = haproxy_environment(self.serving, haproxy_binary(), self.folder)
        starter = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
        chain = [sys.executable, "-c", CHAIN]
        command = [*chain, *chain, starter, "-db", "-f", str(self.config), "-dR", *extra]
        env = os.environ | environment | {MARK: str(self.folder)}
        made = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.chains.append(made)
        assert made.stdout is not None
        manager, proxy = int(made.stdout.readline()), int(made.stdout.readline())
        until(lambda: self.pid() == proxy, 20, "HAProxy")
        return manager, proxy

    def pid(self) -> int | None:
        return running_pid(admin_socket(self.config.read_text()))

    def mine(self) -> list[int]:
        """Everything that was started here and lives."""
        mark = f"{MARK}={self.folder}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (process / "environ").read_bytes():
                    found.append(int(process.name))
        return found

    def get(self, path: str = "/", **options: Any) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=20, **options)


@pytest.fixture
def node() -> Iterator[Node]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # A socket's path must be short, so pytest's own folder is too deep.
    folder = Path(tempfile.mkdtemp(prefix="flts-"))
    made = Node(folder, server.server_address[1])
    made.render()
    try:
        yield made
    finally:
        # Again until none is left: a keeper may start another HAProxy while the first is killed.
        while found := made.mine():
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for chain in made.chains:
            chain.wait()
        server.shutdown()
        server.server_close()
        shutil.rmtree(folder, ignore_errors=True)


def listening_hosts(pids: list[int]) -> set[str]:
    """Addresses of all TCP sockets on which these processes listen."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inodes.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state, inode = (line.split()[i] for i in (1, 3, 9))
            if state == "0A" and inode in inodes:
                raw = bytes.fromhex(local.partition(":")[0])
                found.add(socket.inet_ntoa(raw[::-1]) if len(raw) == 4 else "::")
    return found


def test_it_listens_on_loopback_alone_and_shows_its_metrics(node: Node) -> None:
    node.start()
    assert node.get().text == "hello"
    assert "haproxy_process" in httpx.get(f"http://127.0.0.1:{node.metrics}/metrics").text
    assert listening_hosts(node.mine()) == {"127.0.0.1"}


def test_replicas_are_told_of_a_request_and_callers_get_safe_answers(node: Node) -> None:
    node.start()
    told = node.get("/told", headers={"x-request-id": "mine", "x-flts-started-us": "7"}).json()
    assert told["x-request-id"] == "mine"
    assert abs(time.time() - int(told["x-flts-started-us"]) / 1e6) < 20
    assert len(node.get("/told").json()["x-request-id"]) == 36
    for name, value in ALWAYS:
        assert node.get().headers.get_list(name.decode()) == [value.decode()]
    own = node.get("/page").headers.get_list("content-security-policy")
    assert own == ["default-src 'self'"]


def test_a_killed_haproxy_is_back_before_a_new_caller_is_refused(node: Node) -> None:
    _, proxy = node.start()
    os.kill(proxy, signal.SIGKILL)  # within its first second: Serve is left to report a bad start
    until(lambda: node.pid() is None, 10, "its end")
    manager, again = node.start()
    until(lambda: node.get().text == "hello", 10, "an answer")
    threading.Event().wait(1.1)
    os.kill(again, signal.SIGKILL)
    assert [node.get().text for _ in range(3)] == ["hello"] * 3
    assert node.pid() not in (None, proxy, again)
    # Its manager could not reload a stranger, so it is killed for Serve to start another one.
    until(lambda: manager not in node.mine(), 10, "the manager's end")


def test_a_new_manager_takes_over_with_the_routes_that_were_known(node: Node) -> None:
    manager, proxy = node.start()
    os.kill(manager, signal.SIGKILL)
    assert node.get().text == "hello"
    node.render(routes=False)
    _, second = node.start()
    assert second != proxy
    assert node.get().text == "hello"
    until(lambda: proxy not in node.mine(), 20, "the end of the first")
    node.render()
    _, third = node.start("-sf", str(second), "-x", str(node.folder / "node" / "admin.sock"))
    assert node.get().text == "hello"
    assert third == node.pid()


def test_everything_ends_with_the_node(node: Node) -> None:
    node.start()
    assert len(node.mine()) == 4  # node, manager, HAProxy, keeper
    node.chains[0].kill()
    node.chains[0].wait()
    until(lambda: node.pid() is None, 10, "HAProxy's end")


def test_tls_is_spoken_where_a_certificate_is_given(node: Node) -> None:
    cert, key = node.folder / "cert.pem", node.folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=demo", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    node.serving = ServeConfig(tls=TlsConfig(cert_file=str(cert), key_file=str(key)))
    node.start()
    trusted = ssl.create_default_context(cafile=str(cert))
    trusted.check_hostname = False
    assert httpx.get(f"https://127.0.0.1:{node.port}/", verify=trusted).text == "hello"
    with pytest.raises(httpx.HTTPError):
        node.get()
    assert (node.folder / "node" / "tls.pem").stat().st_mode & 0o077 == 0
