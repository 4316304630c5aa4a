from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from flts_ray.cli import app
from flts_ray.config import load_config
from flts_ray.errors import ConfigError, Unavailable
from flts_ray.ingest.letters import Which
from flts_ray.ingest.progress import COUNTS, IngestView
from flts_ray.jobs.ingest_check import compact_told, epochs_in
from flts_ray.jobs.replay_letters import Replayed
from flts_ray.local.stack import Addresses
from flts_ray.store import Store
from tests.segments import EPOCH, segment

NESTED = {
    "ingest": ("run", "start", "stop", "verify", "compact", "status"),
    "dlq": ("list", "show", "replay", "purge"),
}
ALL = [(group, name) for group, names in NESTED.items() for name in names]


def call(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, list(arguments))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration without a broker; nothing listens, and nothing of S3 is in the way."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "flts.yaml"
    path.write_text(f"name: demo\nroot: {tmp_path / 'root'}\ndata: {{snapshot: latest}}\n")
    return str(path)


@pytest.fixture
def stored(config: str, tmp_path: Path) -> Store:
    """Two segments of partition 0, the second with a dead letter at offset 15."""
    store = Store.open(str(tmp_path / "root"))
    for begin, end in ((0, 10), (10, 20)):
        data, info = segment(begin, end)
        store.put_new(info.key, data)
    assert epochs_in(store, "load") == [EPOCH]
    return store


def test_groups_list_their_commands() -> None:
    for group, names in NESTED.items():
        shown = call(group, "--help").stdout
        assert [name for name in names if not re.search(rf"│ {name} +[A-Z]", shown)] == []
        assert f"Example: flts {group}" in shown


@pytest.mark.parametrize(("group", "name"), ALL)
def test_every_command_has_help_with_an_example_and_takes_overrides(group: str, name: str) -> None:
    shown = call(group, name, "--help").stdout
    assert re.search(rf"Example: flts {group} {name}", shown)
    assert "--config" in shown
    assert "--set" in shown
    parameters = get_command(app).commands[group].commands[name].params  # type: ignore[attr-defined]
    assert [one.name for one in parameters if not one.help] == []


@pytest.mark.parametrize(("group", "name"), [one for one in ALL if one != ("dlq", "show")])
def test_a_missing_configuration_names_the_file(tmp_path: Path, group: str, name: str) -> None:
    result = call(group, name, "-c", str(tmp_path / "none.yaml"))
    assert result.exit_code == 2
    assert "none.yaml: no such configuration file" in result.stderr


@pytest.mark.parametrize("what", ["start", "stop"])
def test_actors_that_stay_need_a_cluster(config: str, what: str) -> None:
    result = call("ingest", what, "-c", config)
    assert result.exit_code == ConfigError.exit_code
    assert "flts ingest run" in result.stderr


@pytest.mark.parametrize("arguments", [["ingest", "run"], ["replay", "--input", "x.csv"]])
def test_without_a_broker_the_way_to_one_is_told(config: str, arguments: list[str]) -> None:
    result = call(*arguments, "-c", config)
    assert result.exit_code == Unavailable.exit_code
    assert "flts up" in result.stderr


def test_a_run_prints_what_was_done_and_compacts_if_asked(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def run(*_: object, **options: Any) -> IngestView:
        seen.append(options)
        totals = {**dict.fromkeys(COUNTS, 0), "rows": 5000, "segments": 2, "bad_rows": 1}
        return IngestView(2.0, totals, 0.0, 0.0, 0, ("done",))

    monkeypatch.setattr("flts_ray.jobs.ingest.run", run)
    monkeypatch.setattr(
        "flts_ray.jobs.ingest_check.compact_stream", lambda *_: "snapshot 1: 5,000 rows in 2 files"
    )
    result = call("ingest", "run", "-c", config, "--until-end", "--compact")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "5,000 rows in 2 segments, 1 dead letters, 2,500 rows/s, lag 0",
        "snapshot 1: 5,000 rows in 2 files",
    ]
    again = call("ingest", "run", "-c", config, "--compact-every", "60")
    assert len(again.stdout.splitlines()) == 1
    assert [(one["until_end"], one["compact_every_s"]) for one in seen] == [
        (True, None), (False, 60.0),
    ]  # fmt: skip


def test_verify_shows_what_is_stored(config: str, stored: Store) -> None:
    result = call("ingest", "verify", "-c", config, "--deep")
    assert result.exit_code == 0
    assert "2 segments, 16 rows, 4 dead letters" in result.stdout
    assert "every byte was read" in result.stdout
    assert result.stdout.rstrip().endswith("no problem found")
    assert "commits not checked: no broker" in result.stderr


def test_verify_lists_problems_and_ends_with_code_2(config: str, stored: Store) -> None:
    data, info = segment(30, 40)
    stored.put_new(info.key, data)
    result = call("ingest", "verify", "-c", config)
    assert result.exit_code == 2
    assert "2 problem(s) in what is stored" in result.stderr
    assert "[20, 30)" in result.stderr
    assert "no problem found" not in result.stdout


def test_verify_and_compact_say_where_nothing_is(config: str) -> None:
    for what in ("verify", "compact"):
        result = call("ingest", what, "-c", config)
        assert result.exit_code == 2
        assert "no segment is stored; `flts ingest run` writes them" in result.stderr


def test_status_tells_partitions_and_that_nobody_knows_the_lag(config: str, stored: Store) -> None:
    shown = call("ingest", "status", "-c", config)
    assert re.search(r"^ +0 +20 +\? +2 +16 +4", shown.stdout, re.MULTILINE)
    assert "lag is not known" in shown.stderr
    whole = call("status", "-c", config).stdout
    assert "load: 1 partition(s), 2 segments, lag not known, 4 dead letters" in whole
    assert "none yet; `flts ingest compact` makes one" in whole


def test_status_of_nothing(config: str) -> None:
    assert "nothing was ingested from load yet" in call("ingest", "status", "-c", config).stdout
    assert "stream" not in call("status", "-c", config).stdout


def test_compaction_makes_a_snapshot_once(config: str, stored: Store) -> None:
    first = call("ingest", "compact", "-c", config)
    assert first.exit_code == 0, first.stderr
    assert first.stdout.startswith("snapshot 1: ")
    assert call("ingest", "compact", "-c", config).stdout == first.stdout
    assert re.search(r"snapshot +number 1", call("status", "-c", config).stdout)


def test_compaction_sweeps_if_asked_and_always_when_it_repeats_by_itself(
    config: str, stored: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [f"spill/table/load/{EPOCH}/dead{number}/0.arrows" for number in range(3)]

    def leave(key: str) -> None:
        store_file = Path(stored.root, key)
        stored.put(key, b"x")
        os.utime(store_file, (1e9, 1e9))

    for key in left[:2]:
        leave(key)
    assert "removed" not in call("ingest", "compact", "-c", config).stdout
    assert stored.exists(left[0])
    swept = call("ingest", "compact", "-c", config, "--sweep")
    assert re.fullmatch(r"snapshot 1: .* files; 2 old files removed\n", swept.stdout)
    assert not any(stored.exists(key) for key in left)
    leave(left[2])
    monkeypatch.setattr("flts_ray.jobs.ingest_check.epoch_at", lambda *_: EPOCH)
    said = compact_told(load_config(config), "here:1")
    assert said.endswith("files; 1 old files removed")
    assert not stored.exists(left[2])


def test_dead_letters_are_listed_shown_and_purged(config: str, stored: Store) -> None:
    listed = call("dlq", "list", "-c", config, "--limit", "3")
    assert listed.stdout.splitlines()[0].strip() == "3 dead letters"
    assert "--limit 6" in listed.stderr
    shown = call("dlq", "show", "0/15", "-c", config)
    assert "code       not_json" in shown.stdout
    assert call("dlq", "show", "0/14", "-c", config).exit_code == 2
    assert call("dlq", "purge", "0/15", "-c", config).stdout == "1 purged\n"
    assert call("dlq", "purge", "--all", "-c", config).stdout == "3 purged\n"
    assert call("dlq", "list", "-c", config).stdout == "no dead letters\n"


@pytest.mark.parametrize("what", ["replay", "purge"])
def test_what_changes_letters_wants_a_choice(config: str, stored: Store, what: str) -> None:
    result = call("dlq", what, "-c", config)
    assert result.exit_code == 2
    assert "choose letters" in result.stderr


def test_a_replay_of_letters_says_how_many(
    config: str, stored: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Which, bool]] = []

    def send(config: object, brokers: str, which: Which, force: bool) -> Replayed:
        seen.append((which, force))
        return Replayed(sent=2, skipped=1, waiting=("0/5",), refused=("0/10",))

    monkeypatch.setattr("flts_ray.jobs.replay_letters.replay", send)
    options = ["-c", config, "--set", "stream.brokers=here:1", "--force"]
    since = "2024-01-01T00:00:00"
    result = call("dlq", "replay", "0/5", "0/10", "--code", "x", "--since", since, *options)
    assert result.stdout == "2 sent, 1 were sent before\n"
    assert "1 are being sent by another command" in result.stderr
    assert "the broker does not take 1, or only their start was kept: 0/10" in result.stderr
    assert seen == [(Which("x", None, 1_704_067_200_000, None, ("0/5", "0/10")), True)]


def test_up_and_down_tell_what_runs(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Addresses("127.0.0.1:9", "", {"AWS_SECRET_ACCESS_KEY": "hidden"})
    wanted: list[bool] = []

    def up(config: object, narrator: object, s3: bool) -> Addresses:
        wanted.append(s3)
        return found

    monkeypatch.setattr("flts_ray.jobs.up.up", up)
    shown = call("up", "-c", config, "--no-s3").stdout
    assert "127.0.0.1:9" in shown
    assert "hidden" not in shown
    assert wanted == [False]
    answers = iter([True, False])
    monkeypatch.setattr("flts_ray.jobs.up.down", lambda config: next(answers))
    assert call("down", "-c", config).stdout == "stopped\n"
    assert call("down", "-c", config).stdout == "nothing was running\n"


def test_a_replay_of_files_says_how_many(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def send(config: object, *arguments: Any, progress: Any) -> SimpleNamespace:
        seen.append(arguments)
        progress(1, 2)
        return SimpleNamespace(sent=1200, already=30)

    monkeypatch.setattr("flts_ray.jobs.replay.replay", send)
    options = ["-i", "new.csv", "--speed", "60", "--limit", "9", "--set", "stream.brokers=here:1"]
    result = call("replay", "-c", config, *options)
    assert result.stdout == "1,200 messages sent to load, 30 were there\n"
    assert seen == [("here:1", "new.csv", 60.0, 9)]


@dataclass
class Traced:
    version: int | None

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version}


def test_lineage_prints_lines_or_json(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flts_ray.jobs.lineage.lineage", lambda config, version: Traced(version))
    monkeypatch.setattr(
        "flts_ray.jobs.lineage.lineage_lines",
        lambda found, every_segment: [f"version {found.version}", f"all {every_segment}"],
    )
    shown = call("lineage", "3", "-c", config, "--segments").stdout
    assert shown.splitlines() == ["version 3", "all True"]
    assert json.loads(call("lineage", "-c", config, "--json").stdout) == {"version": None}
