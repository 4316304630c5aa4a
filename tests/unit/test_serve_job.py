from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from flts_ray.config import Config, parse_config
from flts_ray.errors import Unavailable
from flts_ray.jobs import serve
from flts_ray.serve import deployment


def config_of(folder: Path, address: str | None) -> Config:
    return parse_config(
        {
            "name": "demo",
            "root": str(folder),
            "data": {"path": "x.csv"},
            "ray": {"address": address},
        }
    )


def told(config: Config, monkeypatch: pytest.MonkeyPatch, found: object) -> tuple[list[str], str]:
    """Names that were nudged, and the event that was logged last."""
    names: list[str] = []

    async def nudge(name: str) -> object:
        names.append(name)
        await asyncio.sleep(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(deployment, "nudge", nudge)
    with capture_logs() as logs:
        serve.tell_replicas(config)
    return names, logs[-1]["event"] if logs else ""


def test_replicas_of_a_running_cluster_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, "127.0.0.1:6379")
    assert told(config, monkeypatch, ["2"]) == (["demo"], "replicas_told")


@pytest.mark.parametrize("error", [Unavailable("not served"), TimeoutError(), RuntimeError("x")])
def test_that_nobody_can_be_told_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    config = config_of(tmp_path, "127.0.0.1:6379")
    assert told(config, monkeypatch, error) == (["demo"], "replicas_not_told")


def test_a_cluster_of_the_command_itself_serves_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(config_of(tmp_path, None), monkeypatch, ["2"]) == ([], "")
