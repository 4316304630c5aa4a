from __future__ import annotations

import threading
from pathlib import Path

import pytest

from flts_ray.errors import ConfigError, Conflict, DataError
from flts_ray.jobs.tokens import add_token, list_tokens, remove_token
from flts_ray.serve.door import Door, TokenFile
from tests.unit.test_cli_help import call, write_config


def test_a_token_is_shown_once_and_stored_as_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tokens.jsonl"
    secret = add_token(path, "dashboard", "read")
    assert secret.startswith("flts_")
    assert len(secret) > 40
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert Door(TokenFile(path)).admit("/v1/model", f"Bearer {secret}".encode()) == "dashboard"


def test_tokens_are_listed_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "tokens.jsonl"
    assert list_tokens(path) == []
    add_token(path, "a", "read")
    add_token(path, "b", "admin")
    with pytest.raises(Conflict, match="a: there is"):
        add_token(path, "a", "read")
    remove_token(path, "a")
    assert [(one.name, one.scope) for one in list_tokens(path)] == [("b", "admin")]
    with pytest.raises(DataError, match="no such token"):
        remove_token(path, "a")


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a/b", "a\nb"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="a name has"):
        add_token(tmp_path / "tokens.jsonl", name, "read")


def test_a_damaged_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "tokens.jsonl"
    path.write_text("{")
    with pytest.raises(ConfigError, match="line 1"):
        add_token(path, "a", "read")
    assert path.read_text() == "{"


def test_commands_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "tokens.jsonl"
    threads = [threading.Thread(target=add_token, args=(path, f"t{i}", "read")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list_tokens(path)) == 8
    assert sorted(one.name for one in tmp_path.iterdir()) == [".tokens.jsonl.lock", "tokens.jsonl"]


def test_the_commands(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    secret = call("token", "add", "dashboard", "--scope", "admin", "-c", config).stdout.strip()
    assert secret.startswith("flts_")
    assert call("token", "list", "-c", config).stdout == "dashboard\tadmin\n"
    assert call("token", "add", "dashboard", "-c", config).exit_code == Conflict.exit_code
    assert call("token", "remove", "dashboard", "-c", config).stdout == "dashboard removed\n"
    assert "no token in" in call("token", "list", "-c", config).stdout
