from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from flts_ray.config import Config, parse_config
from flts_ray.errors import DataError, Unavailable
from flts_ray.ingest.letter_topic import KafkaLetterTopic
from flts_ray.ingest.letters import Letter, Which
from flts_ray.jobs.dlq import (
    Purged,
    _hidden_start,
    chosen,
    list_letters,
    milliseconds,
    purge,
    render,
    show,
    summary,
)
from flts_ray.report_stream import letters_table
from flts_ray.store import NotFound, Store
from flts_ray.streams import connect
from tests.segments import EPOCH, TOPIC, stored


@pytest.fixture
def config(tmp_path: Path) -> Config:
    store = Store.open(str(tmp_path))
    for begin in (0, 10):
        stored(store, begin, begin + 10)
    stored(store, 0, 10, partition=1)
    return config_at(tmp_path)


def config_at(root: Path) -> Config:
    return parse_config(
        {
            "name": "load",
            "root": str(root),
            "data": {"snapshot": "latest"},
            "stream": {"topic": TOPIC},
        }
    )


def letter(raw: bytes | None, **other: object) -> Letter:
    return Letter(TOPIC, EPOCH, 0, 7, "not_json", "byte 1", raw, **other)  # type: ignore[arg-type]


def test_letters_are_listed_without_a_broker(config: Config) -> None:
    assert [one.id for one in list_letters(config)] == ["0/0", "0/5", "0/10", "0/15", "1/0", "1/5"]
    assert [one.id for one in list_letters(config, limit=2)] == ["0/0", "0/5"]
    assert [one.id for one in list_letters(config, partition=1)] == ["1/0", "1/5"]
    assert list(list_letters(config, code="too_large")) == []
    since = datetime.fromtimestamp(1_700_000_000.010, UTC)
    assert [one.id for one in list_letters(config, since=since)] == ["0/10", "0/15"]


def test_letters_are_counted_by_reason(config: Config) -> None:
    assert summary(config) == {"not_json": 6}


def test_where_nothing_was_ingested_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="flts ingest run"):
        list_letters(config_at(tmp_path / "empty"))


def test_of_several_lives_the_one_with_the_newest_status_counts(
    config: Config, tmp_path: Path
) -> None:
    store = Store.open(str(tmp_path))
    store.put(f"raw/{TOPIC}/{'f' * 16}/p=0/{0:020d}.parquet", b"")
    status = (
        b'{"updated_at": "2024-01-01T00:00:00+00:00", "index": 0, "of": 1, "partitions": {"0": '
        b'{"end": 20}}}'
    )
    store.put(f"ingest/{TOPIC}/{EPOCH}/status/0.json", status)
    assert len(list(list_letters(config))) == 6


def test_a_purge_hides_what_it_names_and_says_how_many(config: Config) -> None:
    purged = purge(config, Which(before_ms=1_700_000_000_005))
    assert (purged.letters, purged.messages) == (2, None)
    assert [one.id for one in list_letters(config)] == ["0/5", "0/10", "0/15", "1/5"]
    assert purge(config, Which(ids=("0/0",))).letters == 0
    assert "purged" in show(config, "0/0") and "purged" not in show(config, "0/5")


def test_show_names_the_letter_and_says_when_there_is_none(config: Config) -> None:
    shown = show(config, "0/15")
    for part in (f"{TOPIC} 0/15", "not_json", "byte 1", "2023-11-14T22:13:20.015+00:00", "trace: "):
        assert part in shown
    for name in ("0/16", "0/99", "7/0"):
        with pytest.raises(NotFound, match=name):
            show(config, name)
    with pytest.raises(DataError, match="partition/offset"):
        list(chosen(config, Which(ids=("x",))))


def test_bytes_of_strangers_cannot_steer_a_terminal() -> None:
    nasty = b'{"a":\x1b[2J "\xc2\x9b31m", "b":\r\n\t"\xe2\x80\xae"}'
    shown = render(letter(nasty, key=nasty, headers=(("\x1b]0;x\x07", nasty),)))
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert r"\x1b[2J" in shown and r"\u202e" in shown


def test_what_is_no_text_is_dumped() -> None:
    shown = render(letter(bytes(range(250, 256)) + b"abc"))
    assert "00000000  fa fb fc fd fe ff 61 62 63" in shown and "......abc" in shown
    assert shown.count("\n") == 7


def test_long_bytes_are_cut_with_a_note() -> None:
    shown = render(letter("ä".encode() * 5000), limit=101)
    assert "ä" * 50 in shown and "ä" * 51 not in shown
    assert "the first 101 of 10,000 bytes" in shown
    assert "cut" not in render(letter(b"short"))
    assert render(letter(None)).endswith("value      none")
    assert "value      0 bytes" in render(letter(b""))


def test_moments_without_a_zone_are_in_utc() -> None:
    assert milliseconds(datetime(1970, 1, 1, 0, 0, 1)) == 1000
    assert milliseconds(datetime.fromisoformat("1970-01-01T01:00:01+01:00")) == 1000


@pytest.mark.parametrize("stamp", [2**62, -1, -(2**62)])
def test_a_time_that_is_none_is_shown_as_its_number(stamp: int) -> None:
    strange = letter(b"", timestamp_ms=stamp)
    assert strange.arrived is None
    assert f"arrived    {stamp} ms" in render(strange)
    printed = io.StringIO()
    Console(file=printed, width=200).print(letters_table([strange, letter(b"", timestamp_ms=0)]))
    assert f"{stamp} ms" in printed.getvalue() and "1970-01-01 00:00:00" in printed.getvalue()


def test_a_broker_that_is_away_keeps_no_letter_from_being_purged(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*given: object) -> None:
        raise Unavailable("h:1: nobody answers")

    monkeypatch.setattr(connect, "admin", away)
    done = purge(config, Which(partition=0), "h:1")
    assert done == Purged(4, None, "h:1: nobody answers")
    assert [one.id for one in list_letters(config)] == ["1/0", "1/5"]


def test_strangers_messages_end_what_is_freed(config: Config) -> None:
    class Topic:
        name = f"DLQ-{TOPIC}"

        def messages(self, partition: int) -> Iterator[tuple[int, Letter | None]]:
            foreign = Letter("../../other", EPOCH, 0, 0, "c", "", b"")
            return iter([(7, letter(b"")), (8, foreign)])

    purge(config, Which(), None)
    store = Store.open(config.root)
    assert _hidden_start(cast(KafkaLetterTopic, Topic()), store, 0) == (8, 1)
