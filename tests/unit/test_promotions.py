from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.errors import ArtifactError, Conflict, DataError, Unavailable
from flts_ray.promotions import Entry, PromotionLog, challenged, promoted, rolled_back
from flts_ray.store import Created, Exists, FolderStore, NotFound, Store

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)


def _promote(last: Entry | None, version: int, expected: int | None) -> Entry:
    return promoted(last, version, expected, "registry/m/decisions/d.json", "better", NOW, "ann")


def _log(tmp_path: Path) -> PromotionLog:
    return PromotionLog(Store.open(str(tmp_path)), "m")


def test_promotions_keep_the_champion_before_as_previous() -> None:
    first = _promote(None, 4, None)
    second = _promote(first, 6, 4)
    assert first.aliases == {"champion": 4}
    assert (second.n, second.aliases) == (2, {"champion": 6, "previous": 4})
    assert second.at == "2024-05-01T12:00:00.000+00:00"


def test_a_promotion_judged_against_another_champion_is_a_conflict() -> None:
    first = _promote(None, 4, None)
    with pytest.raises(Conflict, match="somebody promoted version 4 meanwhile"):
        _promote(first, 6, None)
    with pytest.raises(Conflict, match="nothing was ever promoted"):
        _promote(None, 6, 4)


def test_the_champion_cannot_be_promoted_again() -> None:
    with pytest.raises(Conflict, match="version 4 is the champion already"):
        _promote(_promote(None, 4, None), 4, 4)


def test_a_challenger_stays_until_it_is_promoted_or_another_is_named() -> None:
    first = _promote(challenged(None, 5, NOW, "ann"), 4, None)
    assert first.challenger == 5
    assert rolled_back(_promote(first, 6, 4), "bad", NOW, "ann").challenger == 5
    assert _promote(first, 5, 4).aliases == {"champion": 5, "previous": 4}
    assert challenged(first, None, NOW, "ann").aliases == {"champion": 4}


@given(st.lists(st.integers(1, 50), min_size=2, max_size=8, unique=True))
def test_two_rollbacks_return_to_the_same_champion(versions: list[int]) -> None:
    last: Entry | None = None
    for version in versions:
        last = _promote(last, version, None if last is None else last.champion)
    back = rolled_back(last, "worse in use", NOW, "ann")
    again = rolled_back(back, "it was the weather", NOW, "ann")
    assert back.champion == versions[-2]
    assert last is not None
    assert again.aliases == last.aliases
    assert again.n == len(versions) + 2


def test_nothing_to_go_back_to_is_said_plainly() -> None:
    with pytest.raises(Unavailable, match="no champion to roll back"):
        rolled_back(None, "x", NOW, "ann")
    with pytest.raises(Unavailable, match="version 4 is the first champion"):
        rolled_back(_promote(None, 4, None), "x", NOW, "ann")


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(DataError, match="time zone"):
        rolled_back(_promote(_promote(None, 1, None), 2, 1), "x", datetime(2024, 1, 1), "ann")


def test_the_log_returns_what_was_appended_in_order(tmp_path: Path) -> None:
    log = _log(tmp_path)
    assert log.newest() is None
    first = _promote(None, 4, None)
    entries = [first, _promote(first, 6, 4)]
    for entry in entries:
        log.append(entry)
    assert log.entries() == entries
    assert log.newest() == entries[1]
    assert (tmp_path / "registry/m/log/00000002.json").is_file()


def test_of_racing_appends_of_one_number_exactly_one_wins(tmp_path: Path) -> None:
    barrier, outcomes = threading.Barrier(8), list[str]()

    def run() -> None:
        barrier.wait()
        try:
            _log(tmp_path).append(_promote(None, 7, None))
            outcomes.append("won")
        except Conflict as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("won") == 1
    assert sum("somebody promoted version 7 meanwhile" in text for text in outcomes) == 7


class ForgetfulStore(FolderStore):
    """Stores, loses the answer, and repeats the request."""

    def put_new(
        self, key: str, data: bytes, metadata: Mapping[str, str] | None = None
    ) -> Created | Exists:
        super().put_new(key, data, metadata)
        return super().put_new(key, data, metadata)


def test_a_repeated_request_of_the_winner_is_no_conflict(tmp_path: Path) -> None:
    log = PromotionLog(ForgetfulStore(str(tmp_path)), "m")
    entry = _promote(None, 7, None)
    log.append(entry)
    assert log.newest() == entry


@pytest.mark.parametrize("body", [b"\xff", b"[]", b'{"n": 1}'])
def test_a_damaged_entry_is_named(tmp_path: Path, body: bytes) -> None:
    Store.open(str(tmp_path)).put("registry/m/log/00000001.json", body)
    with pytest.raises(ArtifactError, match=r"registry/m/log/00000001\.json"):
        _log(tmp_path).newest()


def test_a_decision_is_kept_once_and_cannot_be_altered(tmp_path: Path) -> None:
    log = _log(tmp_path)
    decision = {"accepted": False, "reason": "not better than seasonal_naive", "p": 0.4}
    key = log.record_decision(decision)
    assert log.record_decision(dict(reversed(decision.items()))) == key
    assert log.decision(key) == decision
    Store.open(str(tmp_path)).put(key, json.dumps({**decision, "accepted": True}).encode())
    with pytest.raises(ArtifactError, match="altered"):
        log.decision(key)
    with pytest.raises(NotFound):
        log.decision("registry/m/decisions/none.json")


def test_a_decision_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no JSON"):
        _log(tmp_path).record_decision({"p_value": float("nan")})
