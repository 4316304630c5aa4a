"""Who is champion: a numbered log of immutable entries in the object store.

Design choices: an entry is created, never changed, and its number can be taken only once, so of
two promotions at once exactly one wins without a lock; the newest entry holds the whole state,
so reading it needs no replay; the steps from one state to the next are pure functions; a
decision is named by the hash of its content, so it cannot be altered and recording it twice is
harmless.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Literal
from uuid import uuid4

from flts_ray.errors import ArtifactError, Conflict, DataError, Unavailable
from flts_ray.store import Exists, Store

Action = Literal["promote", "rollback", "challenge"]


@dataclass(frozen=True)
class Entry:
    """One line of the log: what was done, and the state after it.

    `champion`, `previous`, `challenger` are version numbers; `decision` is the store key of the
    decision record; `at` is ISO 8601 with offset; `by` says who.
    """

    n: int
    action: Action
    champion: int | None
    previous: int | None
    challenger: int | None
    decision: str | None
    reason: str | None
    at: str
    by: str

    @property
    def aliases(self) -> dict[str, int]:
        """Alias to version, without those that stand for nothing."""
        state = {
            "champion": self.champion,
            "previous": self.previous,
            "challenger": self.challenger,
        }
        return {alias: version for alias, version in state.items() if version is not None}


def promoted(
    last: Entry | None,
    version: int,
    expected: int | None,
    decision: str,
    reason: str | None,
    at: datetime,
    by: str,
) -> Entry:
    """The entry that makes `version` champion.

    Raises Conflict if the champion is not `expected`, the one the candidate was judged against,
    or if `version` is champion already.
    """
    champion = None if last is None else last.champion
    if last is not None and champion == version:
        raise Conflict(f"version {version} is the champion already, {_since(last)}")
    if last is not None and champion != expected:
        raise _lost(last)
    if last is None and expected is not None:
        raise Conflict(
            f"version {expected}, against which the candidate was judged, is not the champion: "
            "nothing was ever promoted here; judge again and repeat"
        )
    challenger = None if last is None or last.challenger == version else last.challenger
    n = _next(last)
    return Entry(n, "promote", version, champion, challenger, decision, reason, _iso(at), by)


def rolled_back(last: Entry | None, reason: str, at: datetime, by: str) -> Entry:
    """The entry that swaps champion and previous; doing it twice goes forward again.

    Raises Unavailable where there is nothing to go back to.
    """
    if last is None or last.champion is None:
        raise Unavailable("there is no champion to roll back; `flts train` makes the first one")
    if last.previous is None:
        raise Unavailable(
            f"version {last.champion} is the first champion, so there is none to go back to"
        )
    n, champion, previous = _next(last), last.previous, last.champion
    return Entry(n, "rollback", champion, previous, last.challenger, None, reason, _iso(at), by)


def challenged(last: Entry | None, version: int | None, at: datetime, by: str) -> Entry:
    """The entry that names the challenger; None takes the name away."""
    champion, previous = (None, None) if last is None else (last.champion, last.previous)
    return Entry(_next(last), "challenge", champion, previous, version, None, None, _iso(at), by)


class PromotionLog:
    """The log and the decision records of one model under `registry/<name>/`."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._log = f"registry/{name}/log"
        self._decisions = f"registry/{name}/decisions"

    def newest(self) -> Entry | None:
        """The entry that holds the state now; None before the first."""
        keys = self._keys()
        return self._read(keys[-1]) if keys else None

    def entries(self) -> list[Entry]:
        """All entries, oldest first."""
        return [self._read(key) for key in self._keys()]

    def append(self, entry: Entry) -> None:
        """Write the entry. Raises Conflict if its number was taken meanwhile."""
        key = self._key(entry.n)
        # The store may tell the winner of a repeated request that the key exists; the nonce
        # lets it know its own entry.
        body = _json({**asdict(entry), "nonce": uuid4().hex})
        if isinstance(self._store.put_new(key, body), Exists) and self._store.get(key) != body:
            raise _lost(self._read(key))

    def record_decision(self, decision: Mapping[str, Any]) -> str:
        """Keep a decision for ever and return its key. The same one twice is kept once."""
        body = _json(decision)
        key = self._decision_key(body)
        self._store.put_new(key, body)
        return key

    def decision(self, key: str) -> dict[str, Any]:
        """The record under `key`. Raises NotFound, and ArtifactError if it was altered."""
        body = self._store.get(key)
        if self._decision_key(body) != key:
            raise ArtifactError(f"{key}: the decision was altered; restore it from a backup")
        return dict(json.loads(body))

    def decisions(self) -> dict[str, dict[str, Any]]:
        """Every record, accepted and refused, by its key; in the order they were made."""
        found = {info.key: self.decision(info.key) for info in self._store.list(self._decisions)}
        return dict(sorted(found.items(), key=lambda one: str(one[1].get("created_at", ""))))

    def _decision_key(self, body: bytes) -> str:
        return f"{self._decisions}/{hashlib.sha256(body).hexdigest()[:32]}.json"

    def _key(self, n: int) -> str:
        return f"{self._log}/{n:08d}.json"

    def _keys(self) -> list[str]:
        return sorted(info.key for info in self._store.list(self._log))

    def _read(self, key: str) -> Entry:
        try:
            raw = json.loads(self._store.get(key))
            return Entry(**{field.name: raw[field.name] for field in fields(Entry)})
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{key}: no entry of a promotion log ({error!r}); restore it from a backup"
            ) from None


def _next(last: Entry | None) -> int:
    return 1 if last is None else last.n + 1


def _iso(at: datetime) -> str:
    if at.tzinfo is None:
        raise DataError("the time of a promotion needs a time zone; pass one in UTC", field="now")
    return at.isoformat(timespec="milliseconds")


def _since(entry: Entry) -> str:
    return f"since {entry.at} (entry {entry.n}, {entry.action} by {entry.by})"


def _lost(entry: Entry) -> Conflict:
    what = {
        "promote": f"somebody promoted version {entry.champion} meanwhile",
        "rollback": f"somebody rolled back to version {entry.champion} meanwhile",
        "challenge": f"somebody made version {entry.challenger} the challenger meanwhile",
    }[entry.action]
    return Conflict(
        f"{what} (entry {entry.n}, {entry.at}, by {entry.by}); judge against the champion of now, "
        "then repeat"
    )


def _json(value: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(value, sort_keys=True, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"the record is no JSON ({error}); pass plain finite values") from None
    return text.encode()
