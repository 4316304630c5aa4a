"""What the README says can be typed, can be typed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from flts_ray.cli import app
from flts_ray.config import parse_config
from flts_ray.errors import ConfigError
from flts_ray.ingest.decode import Decoder
from flts_ray.jobs import ingest, serve, train
from flts_ray.serve.schemas import ForecastRequest, parse_body
from flts_ray.streams.records import Records

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


def command(words: list[str]) -> Any:
    """The command that a line of words names, groups included. Raises KeyError if there is none."""
    found = get_command(app)
    while hasattr(found, "commands") and words:
        found, words = found.commands[words[0]], words[1:]
    return found


def test_every_command_and_option_exists() -> None:
    for line in re.findall(r"^flts (\w.*)$", README, re.M):
        words = line.split("#")[0].split()
        options = {option for p in command(words).params for option in p.opts}
        assert {word for word in words if word.startswith("-")} <= options, line
    for line in re.findall(r"`flts (\w[^`]*)`", README):
        words = [word for word in line.split() if not word.startswith("-")]
        assert command(words) is not None, line


def test_the_stream_is_told_in_the_order_it_is_used() -> None:
    block = next(block for _, block in BLOCKS if block.startswith("flts up"))
    typed = [line.split("#")[0].split() for line in block.splitlines()]
    names = [" ".join(word for word in words[1:3] if word.isalpha()) for words in typed]
    first = ["up", "replay", "ingest run", "ingest verify", "dlq list", "train", "lineage", "down"]
    assert names == first


def test_every_configuration_is_accepted() -> None:
    found = [yaml.safe_load(block) for language, block in BLOCKS if language == "yaml"]
    assert len(found) == 2
    for raw in found:
        whole = {"name": "load", "data": {"snapshot": "latest"}, **raw}
        assert parse_config(whole).stream.topic == "load"


def test_the_example_message_is_a_good_one() -> None:
    block = next(block for language, block in BLOCKS if language == "json" and '"ds": "' in block)
    decoder = Decoder({"temperature": "past"}, max_message_bytes=1000)
    value = block.strip().encode()
    got = decoder.decode(Records(0, [0], [value], [0], [()], [None], len(value)))
    assert (got.rows, got.bad_rows) == (1, 0)


def test_jobs_and_their_options_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = {"ingest": ingest.main, "train": train.main, "serve": serve.main}
    lines = re.findall(r"python -m flts_ray\.jobs\.(\w+) (.*)", README)
    assert [name for name, _ in lines] == list(jobs)
    for name, rest in lines:
        # Options are read before the file, which is not there.
        assert jobs[name](rest.split()) == ConfigError.exit_code
        assert "flts.yaml: no such configuration file" in capsys.readouterr().err


def test_every_request_body_is_accepted_by_the_schema() -> None:
    bodies = re.findall(r"curl .*?-d '(.*?)'", README, re.S)
    assert len(bodies) == 2
    for body in bodies:
        assert parse_body(ForecastRequest, body.encode())


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_link_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


def test_example_answers_are_json() -> None:
    examples = [json.loads(block) for language, block in BLOCKS if language == "json"]
    assert ["forecast_id" in example for example in examples] == [False, True]
