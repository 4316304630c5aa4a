from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import pytest

from flts_ray.config import parse_config
from flts_ray.errors import ConfigError
from flts_ray.serve.door import (
    Door,
    Forbidden,
    RateLimited,
    TokenFile,
    Unauthorized,
    digest_of,
    door_of,
    parse_tokens,
    tokens_path,
)
from tests.calling import call
from tests.served import history, plain_contract, served, transparent

READ, ADMIN = "flts_read", "flts_admin"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def line(name: str, secret: str, scope: str = "read") -> str:
    return json.dumps({"name": name, "scope": scope, "sha256": digest_of(secret)}) + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.jsonl"
    path.write_text(line("dashboard", READ) + "\n" + line("ops", ADMIN, "admin"))
    return path


def bearer(secret: str) -> bytes:
    return f"Bearer {secret}".encode()


def test_a_known_token_is_let_in_by_name(path: Path) -> None:
    door = Door(TokenFile(path))
    assert door.admit("/v1/forecast", bearer(READ)) == "dashboard"
    assert door.admit("/v1/admin/state", bearer(ADMIN)) == "ops"
    assert door.admit("/v1/forecast", b"bearer  flts_admin ") == "ops"


@pytest.mark.parametrize(
    "sent", [None, b"", b"Bearer", b"Bearer ", b"Basic flts_read", b"Bearer x", b"Bearer \xff\xfe"]
)
def test_others_are_not(path: Path, sent: bytes | None) -> None:
    with pytest.raises(Unauthorized):
        Door(TokenFile(path)).admit("/v1/forecast", sent)


@pytest.mark.parametrize("where", ["/v1/admin/state", "/v1/admin/anything", "/metrics"])
def test_admin_routes_need_the_scope_admin(path: Path, where: str) -> None:
    with pytest.raises(Forbidden, match="dashboard"):
        Door(TokenFile(path)).admit(where, bearer(READ))


def test_health_is_open_to_all(path: Path) -> None:
    door = Door(TokenFile(path))
    assert door.admit("/healthz", None) is None
    assert door.admit("/readyz", None) is None


def test_tokens_come_and_go_without_a_restart(path: Path) -> None:
    clock = Clock()
    door = Door(TokenFile(path, clock))
    door.admit("/v1/forecast", bearer(READ))
    path.write_text(line("other", "flts_other"))
    door.admit("/v1/forecast", bearer(READ))  # within the second between two looks
    clock.now += 1.0
    assert door.admit("/v1/forecast", bearer("flts_other")) == "other"
    with pytest.raises(Unauthorized):
        door.admit("/v1/forecast", bearer(READ))
    path.unlink()
    clock.now += 1.0
    with pytest.raises(Unauthorized):
        door.admit("/v1/forecast", bearer("flts_other"))


def test_a_damaged_file_keeps_the_tokens_of_before(path: Path) -> None:
    clock = Clock()
    door = Door(TokenFile(path, clock))
    door.admit("/v1/forecast", bearer(READ))
    path.write_text("{")
    clock.now += 1.0
    assert door.admit("/v1/forecast", bearer(READ)) == "dashboard"


@pytest.mark.parametrize(
    "text",
    [
        "x", "[]", "{}", '{"name": "a", "scope": "root", "sha256": "00"}',
        json.dumps({"name": "a", "scope": "read", "sha256": "0" * 63}),
        json.dumps({"name": "", "scope": "read", "sha256": "0" * 64}),
        json.dumps({"name": "a", "scope": "read", "sha256": 1}),
    ],
)  # fmt: skip
def test_a_line_that_is_no_token_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="line 2"):
        parse_tokens(line("a", "b") + text)


def test_every_token_has_a_rate_of_its_own(path: Path) -> None:
    clock = Clock()
    door = Door(TokenFile(path, clock), requests_per_s=2.0, burst=3, clock=clock)
    for _ in range(3):
        door.admit("/v1/forecast", bearer(READ))
    with pytest.raises(RateLimited) as caught:
        door.admit("/v1/forecast", bearer(READ))
    assert caught.value.retry_after_s == pytest.approx(0.5)
    door.admit("/v1/forecast", bearer(ADMIN))
    door.admit("/healthz", None)
    clock.now += 0.5
    door.admit("/v1/forecast", bearer(READ))
    with pytest.raises(RateLimited):
        door.admit("/v1/forecast", bearer(READ))


def test_the_place_of_the_file(tmp_path: Path) -> None:
    def config(**serve: object) -> object:
        return parse_config(
            {
                "name": "load",
                "root": serve.pop("root", str(tmp_path / "root")),
                "data": {"path": "load.csv"},
                "serve": {"auth": serve},
            }
        )

    assert tokens_path(config()) == tmp_path / "tokens.jsonl"  # type: ignore[arg-type]
    named = str(tmp_path / "mine")
    assert tokens_path(config(tokens_file=named)) == tmp_path / "mine"  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tokens_file"):
        tokens_path(config(root="s3://bucket/x"))  # type: ignore[arg-type]
    assert door_of(config(required=False)) is None  # type: ignore[arg-type]
    door = door_of(config(tokens_file=named))  # type: ignore[arg-type]
    assert door is not None
    assert os.fspath(door.file.path) == named


def test_the_door_over_http(path: Path) -> None:
    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        token = {"authorization": "Bearer flts_read"}
        return [
            await http.get("/healthz"),
            await http.get("/readyz"),
            await http.post("/v1/forecast", json=history()),
            await http.post("/v1/forecast", json=history(), headers=token),
            await http.get("/v1/admin/state", headers=token),
            await http.get("/docs"),
            await http.get("/nothing"),
            await http.get("/nothing", headers=token),
            await http.get("/v1/admin/state", headers={"authorization": "Bearer flts_admin"}),
        ]

    model = served(transparent(plain_contract()))
    answers = call(work, model, door=Door(TokenFile(path)))
    assert [one.status_code for one in answers] == [200, 200, 401, 200, 403, 401, 401, 404, 200]
    assert answers[2].headers["www-authenticate"] == 'Bearer realm="flts"'
    assert answers[2].json()["error"]["code"] == "unauthorized"
    assert answers[8].json()["tokens"] == [
        {"name": "dashboard", "scope": "read"},
        {"name": "ops", "scope": "admin"},
    ]
    assert digest_of(READ) not in answers[8].text


def test_who_asks_too_often_is_told_when_to_repeat(path: Path) -> None:
    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        token = {"authorization": "Bearer flts_read"}
        return [await http.get("/v1/model", headers=token) for _ in range(2)]

    model = served(transparent(plain_contract()))
    door = Door(TokenFile(path), requests_per_s=0.1, burst=1)
    first, second = call(work, model, door=door)
    assert first.status_code == 200
    assert second.status_code == 429
    assert 1 <= int(second.headers["retry-after"]) <= 10
