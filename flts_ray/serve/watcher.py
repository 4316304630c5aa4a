"""Judges the models of a replica while they answer, and runs a shadow beside them.

Design choices: one thread takes what was answered from a bounded queue and does everything else,
so a caller waits for none of it and a busy replica skips some rather than fall behind; a shadow
forecasts the very windows that the champion got, and now and then both are timed one after the
other on the same windows, because the time of an answer contains waiting that the shadow does not
have; who is dropped is told once, to whoever makes it last.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import structlog
from msgspec.structs import replace

from flts_ray.config_serve import CanaryConfig
from flts_ray.serve.challenge import Latency, Standing, why_dropped
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.live_error import LiveError, Tally
from flts_ray.serve.metrics import Reading
from flts_ray.serve.observe import Made, Observer

QUEUE = 512
"""Series that may wait to be judged; their histories are held meanwhile."""
PER_SECOND = 100
"""Series that are judged a second: enough to know, and little beside the traffic."""
TIMED_EACH = 8
"""A shadow is timed against the champion on one in so many answers."""
_log = structlog.get_logger("flts_ray.serve")


class Watcher:
    """Observes one replica. `on_drop` gets the challenger and the reason, at most once each."""

    def __init__(
        self,
        rules: CanaryConfig,
        record: Observer | None,
        on_drop: Callable[[ServedModel, str], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.skipped = 0
        self._rules = rules
        self._record = record
        self._on_drop = on_drop
        self._clock = clock
        self._live = LiveError()
        self._latency: dict[str, Latency] = {}
        self._champion: ServedModel | None = None
        self._challenger: ServedModel | None = None
        self._shadowed = 0
        self._too_short = ""
        self._waiting: deque[Made] = deque()
        self._series = 0
        self._second, self._judged = 0, 0
        self._some = threading.Condition()
        self._closing = False
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Only forecasts are judged."""

    def forecast(self, made: Made) -> None:
        """Take note of an answer; skips it where too many wait, and those of many series."""
        if made.degraded:
            return
        series = len(made.windows)
        with self._some:
            second = int(self._clock())
            if second != self._second:
                self._second, self._judged = second, 0
            if self._series + series > QUEUE or self._judged >= PER_SECOND:
                self.skipped += series
                return
            self._series += series
            self._judged += series
            self._waiting.append(made)
            self._some.notify()

    def models(self, champion: ServedModel | None, challenger: ServedModel | None) -> None:
        """Which models the replica holds now; what is known of others is forgotten."""
        with self._some:
            self._champion, self._challenger = champion, challenger

    def drain(self) -> None:
        """Return when everything that waits has been judged."""
        with self._some:
            self._some.wait_for(lambda: not (self._waiting or self._busy))

    def close(self) -> None:
        with self._some:
            self._closing = True
            self._some.notify_all()
        self._thread.join()

    def readings(self) -> list[Reading]:
        """Live error by role, of the versions that are held."""
        with self._some:
            held = (("champion", self._champion), ("challenger", self._challenger))
        found = []
        for role, model in held:
            tally = self._live.tallies.get(model.version) if model is not None else None
            if tally is not None and tally.windows:
                found.append(Reading("flts_serve_live_error", tally.mean, {"role": role}))
        return found

    def _run(self) -> None:
        while True:
            with self._some:
                self._busy = False
                self._some.notify_all()
                self._some.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                made = self._waiting.popleft()
                self._series -= len(made.windows)
                self._busy = True
                champion, challenger = self._champion, self._challenger
            try:
                self._judge(made, champion, challenger)
            except Exception:  # noqa: BLE001 -- a strange answer must not end the watch
                _log.exception("watch_failed", forecast_id=made.forecast_id)

    def _judge(
        self, made: Made, champion: ServedModel | None, challenger: ServedModel | None
    ) -> None:
        held = {model.version for model in (champion, challenger) if model is not None}
        for version in set(self._live.tallies) - held:
            self._live.forget(version)
            self._latency.pop(version, None)
        self._live.observe(made.windows)
        if made.version not in held:
            return
        self._live.remember(made)
        if challenger is None or champion is None:
            return
        if self._rules.shadow:
            self._shadow(made, champion, challenger)
        else:
            self._latency.setdefault(made.version, Latency()).add(made.seconds)
        reason = why_dropped(self._standing(champion), self._standing(challenger), self._rules)
        if reason is not None:
            self._drop(challenger, reason)

    def _shadow(self, made: Made, champion: ServedModel, challenger: ServedModel) -> None:
        """Forecast the champion's windows once more; a shadow that fails is dropped."""
        windows = made.windows
        if made.version != champion.version:
            return
        if windows.lookback < challenger.fitted.spec.lookback:
            self._say_too_short(challenger, windows.lookback)
            return
        began = self._clock()
        try:
            forecast = challenger.fitted.forecast(windows.last(challenger.fitted.spec.lookback))
        except Exception as error:  # noqa: BLE001 -- whatever it is, callers would meet it
            self._drop(challenger, f"it cannot forecast {windows.ids[0]!r}: {error}")
            return
        seconds = self._clock() - began
        shadow = replace(
            made, version=challenger.version, digest=challenger.digest, forecast=forecast,
            seconds=seconds, role="shadow",
        )  # fmt: skip
        self._live.remember(shadow)
        if self._record is not None:
            self._record.forecast(shadow)
        if self._shadowed % TIMED_EACH == 0:
            began = self._clock()
            champion.fitted.forecast(windows)
            self._latency.setdefault(champion.version, Latency()).add(self._clock() - began)
            self._latency.setdefault(challenger.version, Latency()).add(seconds)
        self._shadowed += 1

    def _say_too_short(self, challenger: ServedModel, lookback: int) -> None:
        """Once for each challenger: it is neither judged nor dropped."""
        if self._too_short == challenger.digest:
            return
        self._too_short = challenger.digest
        _log.warning(
            "shadow_cannot_run", version=challenger.version,
            problem=f"it looks back {challenger.fitted.spec.lookback} steps and the champion "
            f"{lookback}; try it as a canary (serve.canary.share), which is asked with its own",
        )  # fmt: skip

    def _standing(self, model: ServedModel) -> Standing:
        tally = self._live.tallies.get(model.version, Tally())
        return Standing(tally, self._latency.get(model.version, Latency()))

    def _drop(self, challenger: ServedModel, reason: str) -> None:
        with self._some:
            if self._challenger is not challenger:
                return
            self._challenger = None
        _log.warning("challenger_dropped", version=challenger.version, reason=reason)
        self._on_drop(challenger, reason)
