from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flts_ray.config import Config, parse_config
from flts_ray.jobs.own_token import own_token, token_for
from flts_ray.jobs.tokens import list_tokens
from flts_ray.serve.door import digest_of, tokens_path


def config_of(root: Path, **auth: Any) -> Config:
    return parse_config(
        {
            "name": "demo",
            "root": str(root / "data"),
            "data": {"path": "x.csv"},
            "serve": {"auth": auth},
        }
    )


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLTS_TOKEN", raising=False)


def test_commands_of_this_user_are_let_in_while_one_serves(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert token_for(config) is None
    with own_token(config):
        secret = token_for(config)
        assert secret is not None
        (token,) = list_tokens(tokens_path(config))
        assert (token.scope, token.sha256) == ("read", digest_of(secret))
        (kept,) = list(tmp_path.rglob("demo.token"))
        assert kept.stat().st_mode & 0o777 == 0o600
    assert token_for(config) is None
    assert list_tokens(tokens_path(config)) == []


def test_what_a_killed_command_left_is_replaced(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    left = own_token(config)
    left.__enter__()
    before = token_for(config)
    with own_token(config):
        assert token_for(config) not in (None, before)
        assert len(list_tokens(tokens_path(config))) == 1


def test_a_token_of_the_environment_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    monkeypatch.setenv("FLTS_TOKEN", "flts_elsewhere")
    with own_token(config):
        assert token_for(config) == "flts_elsewhere"


def test_an_open_door_needs_no_token(tmp_path: Path) -> None:
    config = config_of(tmp_path, required=False)
    with own_token(config):
        assert token_for(config) is None
    assert not tokens_path(config).exists()
