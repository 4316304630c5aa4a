from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flts_ray.cli import app
from flts_ray.errors import Unavailable
from flts_ray.store import Store
from tests.segments import bad, good, segment


def call(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, list(arguments))


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Two dead letters, one of them with a time that is none."""
    store = Store.open(str(tmp_path / "root"))
    data, info = segment(0, 3, [bad(0), good(1), bad(2, timestamp_ms=2**62)])
    store.put_new(info.key, data)
    path = tmp_path / "flts.yaml"
    path.write_text(f"name: demo\nroot: {tmp_path / 'root'}\ndata: {{snapshot: latest}}\n")
    return str(path)


def test_a_letter_with_an_impossible_time_is_listed_and_shown(config: str) -> None:
    listed = call("dlq", "list", "-c", config)
    assert listed.exit_code == 0 and f"{2**62} ms" in listed.stdout
    shown = call("dlq", "show", "0/2", "-c", config)
    assert shown.exit_code == 0 and f"arrived    {2**62} ms" in shown.stdout


def test_purging_with_the_broker_away_says_what_was_not_done(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*given: object) -> None:
        raise Unavailable("here:1: nobody answers")

    monkeypatch.setattr("flts_ray.streams.connect.admin", away)
    result = call("dlq", "purge", "--all", "-c", config, "--set", "stream.brokers=here:1")
    assert (result.exit_code, result.stdout) == (0, "2 purged\n")
    assert "nothing freed in the topic: here:1: nobody answers; purge again" in result.stderr
