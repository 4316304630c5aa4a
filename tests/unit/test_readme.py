"""What the README says can be typed, can be typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

from flts_ray.cli import app
from flts_ray.serve.schemas import ForecastRequest, parse_body

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)


def test_the_first_block_names_targets_of_the_makefile() -> None:
    language, block = BLOCKS[0]
    targets = re.findall(r"^make (\w+)", block, re.M)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert language == "sh"
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_every_command_and_option_exists() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, rest in re.findall(r"^flts (\w+)(.*)$", README, re.M):
        options = {o for p in commands[name].params for o in p.opts}
        assert set(re.findall(r"--[a-z]+", rest.split("#")[0])) <= options, name
    for name in re.findall(r"`flts (\w+)", README):
        assert name in commands


def test_every_request_body_is_accepted_by_the_schema() -> None:
    bodies = re.findall(r"curl .*?-d '(.*?)'", README, re.S)
    assert len(bodies) == 2
    for body in bodies:
        assert parse_body(ForecastRequest, body.encode())


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_link_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


def test_example_answers_are_json() -> None:
    for language, block in BLOCKS:
        if language == "json":
            assert "forecast_id" in json.loads(block)
