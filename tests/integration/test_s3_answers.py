"""Answers that a real server gives only on a bad day."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from flts_ray.config import DataConfig
from flts_ray.errors import Unavailable
from flts_ray.ingest.claims import ClaimReader
from flts_ray.ingest.decode_sample import Claim, Refusal
from flts_ray.store import Created, Denied, Exists, Store

pytestmark = pytest.mark.integration
LOST = 0
REFUSED = 412


class Server(ThreadingHTTPServer):
    """Answers each PUT by the next of a list of statuses, the last for ever; keeps what it got.

    LOST: the object is stored, the connection ends without an answer.
    """

    def __init__(self, statuses: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses = statuses
        self.objects: dict[str, bytes] = {}
        self.puts = 0


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        status = server.statuses[min(server.puts, len(server.statuses) - 1)]
        server.puts += 1
        assert self.headers["If-None-Match"] == "*"
        if self.path in server.objects:
            status = REFUSED
        elif status in (LOST, 200):
            server.objects[self.path] = body
        if status == LOST:
            self.close_connection = True
            return
        self.send_response(status)
        if status == 200:
            self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()

    def do_HEAD(self) -> None:
        body = self.server.objects.get(self.path)
        status = next((s for s in (400, 403, 409, 414, 500) if f"/{s}" in self.path), 200)
        self.send_response(404 if body is None and status == 200 else status)
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, *statuses: int) -> Iterator[tuple[Server, Store]]:
    with Server(list(statuses)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        try:
            yield server, Store.open("s3://bucket")
        finally:
            server.shutdown()
            thread.join()


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(monkeypatch, 503, 500, 200) as (server, store):
        assert store.put_new("k", b"v", {"end": "1"}) == Created("k")
        assert (server.puts, server.objects) == (3, {"/bucket/k": b"v"})


def test_a_lost_answer_never_passes_for_anothers_success(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(monkeypatch, LOST, 200) as (server, store):
        try:
            answer: Created | Exists | None = store.put_new("k", b"v")
        except Unavailable:
            answer = None
        assert server.objects == {"/bucket/k": b"v"}
        assert answer != Created("k")
        assert store.put_new("k", b"v") == Exists("k")


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_fails_on_and_on_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    with (
        answering(monkeypatch, status) as (server, store),
        pytest.raises(Unavailable, match=str(status)),
    ):
        store.put_new("k", b"v")
    assert server.puts > 1


@pytest.mark.parametrize("status", [400, 403, 414])
def test_a_refusal_of_one_key_is_told_apart(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with answering(monkeypatch, 200) as (_, store):
        for ask in (store.head, store.exists, store.get, lambda key: store.get_range(key, 0, 1)):
            with pytest.raises(Denied, match=str(status)):
                ask(f"{status}.csv")
        claims = ClaimReader({"b": store.root}, DataConfig(path="x.csv"), 10**6)
        found = claims.read(Claim("b", f"{status}.csv"))
        assert isinstance(found, Refusal) and found.code == "claim_unreadable"
        all_refused = ClaimReader({"b": f"{store.root}/{status}"}, DataConfig(path="x.csv"), 10**6)
        with pytest.raises(Denied):
            all_refused.read(Claim("b", "x.csv"))


@pytest.mark.parametrize("status", [409, 500])
def test_other_answers_are_waited_for(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with answering(monkeypatch, 200) as (_, store):
        with pytest.raises(Unavailable) as raised:
            store.head(f"{status}.csv")
        assert not isinstance(raised.value, Denied)


def test_a_refusal_with_nothing_stored_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(monkeypatch, 409, 200) as (_, store):
        with pytest.raises(Unavailable, match="repeat"):
            store.put_new("k", b"v")
        assert store.put_new("k", b"v") == Created("k")
