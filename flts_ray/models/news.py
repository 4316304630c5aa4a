"""What a prepared set holds that a model has not seen.

Design choices: series keep the rows they have in the model and new ones follow, so that tables by
row stay valid; only the new rows and the history before them are copied, so an update costs what
is new; nothing of the test span is copied, so no update can read it; the scale of a known series
stays, because maps, weights and bands are in its units, while level, spread and clipping bounds,
which only widen, follow the newer set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models.base import Fitted
from flts_ray.models.memory import NEVER, Memory, needed_memory, of_series, positions_of
from flts_ray.models.recent_scores import Ask, score_windows
from flts_ray.models.track import Step, follow
from flts_ray.panel import Contract, steps_after
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats
from flts_ray.prepare.covariates import check_future


@dataclass(frozen=True)
class News:
    """New rows for a model. Series are in the order of `stats`, `known` of them known before.

    source: the prepared set; at: int64 [S], index of each series in it, -1 where it is missing;
    since, until: int64 [S], positions in the source of the first new step and of the test span.
    """

    source: SeriesArrays
    stats: SeriesStats
    known: int
    at: np.ndarray
    since: np.ndarray
    until: np.ndarray

    @property
    def rows(self) -> int:
        """Steps that are new, of all series together."""
        return int((self.until - self.since).sum())

    @property
    def until_us(self) -> np.ndarray:
        """Where the model has seen each series to, once it is updated: int64 [S]."""
        instants = steps_after(self.start_us, self.until, self.source.contract)
        return np.where(self.at >= 0, instants, NEVER)

    @property
    def start_us(self) -> np.ndarray:
        """Where each series begins in the source, zero for one that is missing: int64 [S]."""
        return np.where(self.at >= 0, self.source.start_us[self.at], 0)

    def tail(self, back: int) -> tuple[SeriesArrays, np.ndarray]:
        """New rows with up to `back` steps before them, and the position where each begins.

        New rows are the validation span of the result, its test span is empty; a series without
        news has no rows.
        """
        begin = np.where(self.since < self.until, np.maximum(self.since - back, 0), self.until)
        return self._cut(begin), begin

    def whole(self) -> SeriesArrays:
        """All rows before the test span; the new ones are the validation span."""
        return self._cut(np.zeros_like(self.since))

    def _cut(self, begin: np.ndarray) -> SeriesArrays:
        source, lengths = self.source, self.until - begin
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        first = np.where(self.at >= 0, source.offsets[self.at], 0) + begin
        rows = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], lengths)
        return SeriesArrays(
            contract=source.contract,
            stats=self.stats,
            offsets=offsets,
            start_us=steps_after(self.start_us, begin, source.contract),
            train_end=self.since - begin,
            valid_end=lengths,
            y=source.y[rows],
            observed=source.observed[rows],
            future=source.future[rows],
            past=source.past[rows],
            static=source.static[self.at],
        )


def news_of(
    fitted: Fitted, data: SeriesArrays, *, only_known: bool = False, bands: bool = False
) -> News | None:
    """What is new in `data`, or None where nothing is.

    only_known: leave out series that the model does not know; bands: what its bands, which may
    have been followed alone, have seen is not new. Raises DataError for a set of
    another contract, for a missing known-future value and for a model that does not tell how far
    it has seen.
    """
    memory = needed_memory(fitted)
    data = _as_known(fitted.spec.contract, data, fitted.spec.kind)
    check_future(data)
    row_of, mine = data.stats.row_of, fitted.stats
    new = () if only_known else tuple(name for name in data.ids if name not in mine.row_of)
    ids = mine.ids + new
    at = np.fromiter((row_of.get(name, -1) for name in ids), dtype=np.int64, count=len(ids))
    seen = of_series(memory.until_us if bands else memory.learned_us, mine, ids)
    until = np.where(at >= 0, data.valid_end[at], 0)
    since = positions_of(seen, np.where(at >= 0, data.start_us[at], 0), data.contract)
    news = News(data, _merged(mine, data, at), len(mine.ids), at, np.minimum(since, until), until)
    return news if news.rows else None


@dataclass(frozen=True)
class Learned:
    """What the news say of bands. memory: of the model afterwards; step: how its bands move."""

    memory: Memory
    step: Step


def learned(
    fitted: Fitted, news: News, ask: Ask, *, own: bool = False, bands: bool = True
) -> Learned:
    """Forecasts of the windows that the news complete, scored as they were before the model
    learned from them.

    own: series have widths of their own; bands: False leaves the bands as they are.
    """
    found = followed_bands(fitted, news, ask, own=own) if bands else _as_they_are(fitted, news)
    before = needed_memory(fitted)
    memory = replace(
        found.memory,
        until_us=_grown(news, before.until_us),
        learned_us=_grown(news, before.learned_us),
        count=before.count + float((news.until - news.since)[: news.known].sum()),
    )
    return replace(found, memory=memory)


def followed_bands(fitted: Fitted, news: News, ask: Ask, *, own: bool = False) -> Learned:
    """What the bands learn from windows that they have not seen; nothing else has learned them."""
    before, spec, n_series = needed_memory(fitted), fitted.spec, len(news.stats.ids)
    seen = positions_of(before.until_us, news.start_us[: news.known], news.source.contract)
    since = news.since.copy()
    since[: news.known] = np.clip(seen, since[: news.known], news.until[: news.known])
    tail, begin = replace(news, since=since).tail(spec.lookback + spec.task.horizon - 1)
    there = int((news.at[: news.known] >= 0).sum())
    served = score_windows(tail, begin, news.known, spec.task, spec.lookback, ask, there)
    step = follow(before.track, served, spec.task.levels, n_series, own=own)
    until = _grown(news, before.until_us)
    return Learned(replace(before, until_us=until, track=step.track), step)


def _as_they_are(fitted: Fitted, news: News) -> Learned:
    before = needed_memory(fitted)
    return Learned(before, Step.none(before.track, len(news.stats.ids)))


def _grown(news: News, before_us: np.ndarray) -> np.ndarray:
    """Seen positions after the update, never earlier than before: int64 [S]."""
    grown = news.until_us
    grown[: news.known] = np.maximum(grown[: news.known], before_us)
    return grown


def _merged(mine: SeriesStats, data: SeriesArrays, at: np.ndarray) -> SeriesStats:
    theirs, known = data.stats, len(mine.ids)
    there = at[:known] >= 0
    ids = mine.ids + tuple(data.ids[i] for i in at[known:])

    def joined(name: str, old: np.ndarray) -> np.ndarray:
        return np.concatenate([old, getattr(theirs, name)[at[known:]]])

    def newer(name: str) -> np.ndarray:
        return np.where(there, getattr(theirs, name)[at[:known]], getattr(mine, name))

    return SeriesStats(
        ids,
        mean=joined("mean", newer("mean")),
        std=joined("std", newer("std")),
        scale=joined("scale", mine.scale),
        clip_lo=joined("clip_lo", np.minimum(mine.clip_lo, newer("clip_lo"))),
        clip_hi=joined("clip_hi", np.maximum(mine.clip_hi, newer("clip_hi"))),
    )


def same_contract(contract: Contract, other: Contract) -> bool:
    """Whether rows of one set can be added to another.

    Labels may differ, and a label of the units that was added later changes no number.
    """
    units = other.units if other.units and contract.units else contract.units
    return replace(other, categories=contract.categories, units=units) == contract


def _as_known(contract: Contract, data: SeriesArrays, kind: str) -> SeriesArrays:
    """The set with text columns in the codes of the model. Raises DataError for another one."""
    theirs = data.contract
    if theirs == contract:
        return data
    if not same_contract(contract, theirs):
        raise DataError(
            f"{kind}: the set has other columns, another frequency or another season than the one "
            "this model was fitted on, so its rows cannot be added; train again",
            field="contract",
        )
    static = data.static.copy()
    for name, labels in theirs.labels.items():
        column = theirs.static.index(name)
        codes = [contract.code_of(name, label) for label in labels]
        known = static[:, column] >= 0
        static[known, column] = np.asarray(codes)[static[known, column].astype(np.int64)]
    return replace(data, contract=contract, static=static)
