"""Starts HAProxy for Ray Serve: confined to one address, with TLS, and outliving its starter.

Run by path as a script (`python -I -S haproxy_start.py HAPROXY ARGUMENTS...`) in the place of the
binary, so only light standard modules are imported here. Ray renders a configuration before each
start; what it has no switch for is changed in a copy.

Design choices: the process becomes HAProxy by exec, because Ray compares process numbers; the
listening sockets belong to a keeper (`haproxy_keeper.py`), so that callers wait in their queue
instead of being refused while HAProxy is replaced, however it went; a first start that finds a
HAProxy whose starter was killed takes over from it, with its routes until Ray has told the new
ones, because without any every request would be answered with 404; HAProxy leads a session of its
own, so that it goes on without its starter; Ray recognises its HAProxy by the path of the
configuration it wrote, so that path stays among the arguments, as the name of a peer that nobody
uses.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

KEEPER = Path(__file__).with_name("haproxy_keeper.py")
TLS = "ssl crt {pem} ssl-min-ver TLSv1.2 alpn h2,http/1.1"
FRONTEND = (
    "option http-buffer-request",
    "option dontlog-normal",
    "http-request set-header x-request-disconnect-disabled ?1",
    "http-request set-header x-flts-started-us %[date(0,us)]",
    "http-request set-header x-request-id %[uuid] unless { req.hdr(x-request-id) -m found }",
    "http-after-response set-header x-content-type-options nosniff",
    "http-after-response set-header x-frame-options DENY",
    "http-after-response set-header referrer-policy no-referrer",
    "http-after-response set-header cache-control no-store",
    "http-after-response set-header content-security-policy "
    "\"default-src 'none'; frame-ancestors 'none'\" "
    "unless { res.hdr(content-security-policy) -m found }",
)
"""Lines of the HTTP frontend: every request is read whole, named and dated; every answer has the
headers that keep a browser from doing anything with it."""
FIRST_FD = 50
KEEPER_START_S = 10.0


def confined(
    text: str, folder: str, metrics_host: str, pem: str | None, host: str | None = None
) -> str:
    """Ray's configuration with nothing on an interface that was not asked for.

    The HTTP listener moves to `host`, where one is given, and the metrics to `metrics_host`; the
    page of statistics, which asks for no password, to a Unix socket in `folder`; requests are not
    logged one by one; with `pem`, a file with certificate and key, the HTTP listener speaks TLS.
    A request is read whole before it is passed on, because only then can it be repeated at another
    replica: many clients send head and body apart.
    """
    pattern = r"(?m)^(frontend http_frontend\n(\s*)bind \S+)$"
    text = re.sub(pattern, "".join([r"\1", *(rf"\n\2{line}" for line in FRONTEND)]), text)
    text = re.sub(r"(?m)^(\s*)bind :(\d+)$", rf"\1bind {metrics_host}:\2", text)
    text = re.sub(
        r"(?m)^(\s*)bind \*:\d+(\n\s*stats enable)$",
        rf"\1bind unix@{folder}/stats.sock mode 600\2",
        text,
    )
    text = re.sub(r"(?m)^(\s*log \S+ local0) info$", r"\1 notice", text)
    if host is not None:
        text = re.sub(r"(?m)^(frontend http_frontend\n\s*bind )\S+(:\d+)$", rf"\g<1>{host}\2", text)
    if pem is not None:
        pattern = r"(?m)^(frontend http_frontend\n\s*bind \S+)$"
        text = re.sub(pattern, rf"\1 {TLS.format(pem=pem)}", text)
    return text


def listeners(text: str) -> list[str]:
    """The `host:port` addresses that a configuration listens on; `*` is any interface."""
    return re.findall(r"(?m)^\s*bind ((?:\S*[^@\s]):\d+)(?= |$)", text)


def with_descriptors(text: str, addresses: list[str]) -> str:
    """The configuration with inherited sockets, from FIRST_FD on, in the place of addresses."""
    for i, address in enumerate(addresses):
        pattern = rf"(?m)^(\s*bind ){re.escape(address)}(?= |$)"
        text = re.sub(pattern, rf"\g<1>fd@{FIRST_FD + i}", text)
    return text


def admin_socket(text: str) -> str:
    """Path of the socket on which HAProxy takes commands."""
    found = re.search(r"(?m)^\s*stats socket (\S+)", text)
    if found is None:
        raise SystemExit("the configuration names no `stats socket`: another version of Ray Serve?")
    return found[1]


def running_pid(path: str) -> int | None:
    """Process number of the HAProxy that answers on its admin socket; None without one."""
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(2.0)
            admin.connect(path)
            admin.sendall(b"show info\n")
            while part := admin.recv(65536):
                answer += part
    except OSError:
        return None
    found = re.search(rb"(?m)^Pid: (\d+)", answer)
    return int(found[1]) if found else None


def takeover(path: str, arguments: list[str]) -> list[str]:
    """What a first start adds to take over from a HAProxy whose starter is gone."""
    if "-x" in arguments:
        return []
    before = running_pid(path)
    return [] if before is None else ["-sf", str(before), "-x", path]


def combined(cert: str, key: str, folder: Path) -> str:
    """One file with certificate and key, which only this user reads; returns its path."""
    path = folder / "tls.pem"
    draft = folder / f"tls.{os.getpid()}"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as pem:
        pem.write(Path(cert).read_bytes().rstrip() + b"\n" + Path(key).read_bytes())
    os.replace(draft, path)
    return str(path)


def sockets_of_keeper(folder: Path, request: dict[str, object]) -> list[int]:
    """The listening sockets; empty if the keeper cannot have them."""
    path = str(folder / "keeper.sock")
    end = time.monotonic() + KEEPER_START_S
    started = False
    while time.monotonic() < end:
        with socket.socket(socket.AF_UNIX) as keeper:
            keeper.settimeout(5.0)
            try:
                keeper.connect(path)
                keeper.sendall(json.dumps(request).encode() + b"\n")
                said, descriptors, _, _ = socket.recv_fds(keeper, 4096, 8)
            except OSError:
                if not started:
                    _start_keeper(folder)
                    started = True
                time.sleep(0.01)
                continue
        if not descriptors:
            print(f"no sockets from the keeper: {said.decode()}", file=sys.stderr)
        return descriptors
    print("the keeper did not start", file=sys.stderr)
    return []


def _start_keeper(folder: Path) -> None:
    with (folder / "keeper.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-I", "-S", str(KEEPER), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def settings_of(folder: Path) -> tuple[str, str | None, str | None]:
    """Host of the metrics, the file for TLS and the host of HTTP, as the environment tells."""
    cert, key = os.environ.get("FLTS_HAPROXY_CERT"), os.environ.get("FLTS_HAPROXY_KEY")
    pem = combined(cert, key, folder) if cert and key else None
    metrics_host = os.environ.get("FLTS_HAPROXY_METRICS_HOST", "127.0.0.1")
    return metrics_host, pem, os.environ.get("FLTS_HAPROXY_HOST")


def remembered(text: str, memory: Path, *, taking_over: bool) -> str:
    """The configuration, or that of the HAProxy before where this one has no routes yet."""
    if re.search(r"(?m)^\s*use_backend ", text):
        replace(memory, text)
        return text
    if not taking_over or not memory.exists():
        return text
    before = memory.read_text()
    return before if listeners(before) == listeners(text) else text


def replace(path: Path, text: str) -> None:
    """Write a file that nobody sees half of."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text)
    os.replace(draft, path)


def main(binary: str, arguments: list[str]) -> None:
    """Become HAProxy with the arguments that Ray gave."""
    if "-f" not in arguments:
        os.execv(binary, [binary, *arguments])
    given = Path(arguments[arguments.index("-f") + 1])
    folder = given.parent
    folder.chmod(0o700)
    text = confined(given.read_text(), str(folder), *settings_of(folder))
    admin, addresses = admin_socket(text), listeners(text)
    extra = takeover(admin, arguments)
    text = remembered(text, folder / "routes.cfg", taking_over=bool(extra))
    copy = folder / "confined.cfg"
    rest = [a for i, a in enumerate(arguments) if a != "-f" and arguments[i - 1] != "-f"]
    plain = [binary, "-db", "-dR", "-f", str(copy), "-L", str(given)]
    request = {"pid": os.getpid(), "manager": os.getppid(), "admin": admin, "listen": addresses}
    descriptors = sockets_of_keeper(folder, {**request, "command": plain})
    for i, descriptor in enumerate(descriptors):
        os.dup2(descriptor, FIRST_FD + i)
    replace(copy, with_descriptors(text, addresses) if descriptors else text)
    if os.getpid() != os.getpgrp():
        os.setsid()
    os.execv(binary, [*plain, *(a for a in rest if a not in plain), *extra])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
