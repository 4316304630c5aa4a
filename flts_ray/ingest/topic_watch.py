"""Whether the topic that is read is still the one whose segments are written.

Design choices: a topic that was deleted and made again starts at offset 0 under the same name, and
soon has the offsets that were read last, so positions alone cannot tell; the broker is asked for
the topic's identity after each of its absences, before anything read since then counts, and every
half minute besides; a broker that does not say is asked again, since that alone means nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from flts_ray.errors import Unavailable

EVERY_S = 30.0
AGAIN_S = 2.0
"""Seconds until a broker that did not say is asked again."""


class TopicWatch:
    """Watches `topic` in its life `epoch`; `epoch_now` asks the broker for it, None: never."""

    def __init__(
        self,
        topic: str,
        epoch: str,
        epoch_now: Callable[[], str] | None,
        clock: Callable[[], float],
    ) -> None:
        self._topic, self._epoch = topic, epoch
        self._epoch_now, self._clock = epoch_now, clock
        self._due = clock() + EVERY_S
        self._doubt = ""

    def look(self, away: bool) -> str:
        """Why messages read now may be another topic's; empty if they are not.

        `away`: the broker does not answer at the moment. Raises Unavailable where another topic of
        the same name took this one's place.
        """
        if self._epoch_now is None:
            return ""
        if away:
            self.doubt("the broker was away")
        elif self._clock() >= self._due:
            self._ask(self._epoch_now)
        return self._doubt

    def doubt(self, why: str) -> None:
        """Have the broker asked before anything read from now on counts."""
        if self._epoch_now is not None:
            self._doubt, self._due = why, self._clock()

    def ask(self) -> None:
        """Ask at once. Raises Unavailable as `look` does."""
        if self._epoch_now is not None:
            self._ask(self._epoch_now)

    def _ask(self, epoch_now: Callable[[], str]) -> None:
        try:
            epoch = epoch_now()
        except Unavailable as error:
            self._due = self._clock() + AGAIN_S
            structlog.get_logger().warning("topic_not_asked", topic=self._topic, reason=str(error))
            return
        if epoch != self._epoch:
            raise Unavailable(
                f"topic {self._topic} was made anew while it was read; start again to take it in "
                "from its beginning, beside what is stored"
            )
        self._doubt, self._due = "", self._clock() + EVERY_S
