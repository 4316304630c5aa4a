from __future__ import annotations

import pytest

from flts_ray.errors import Unavailable
from flts_ray.ingest.topic_watch import AGAIN_S, EVERY_S, TopicWatch


class Broker:
    """Says the topic's epoch, or nothing; counts how often it was asked. Has a clock too."""

    def __init__(self) -> None:
        self.epoch, self.asked, self.silent, self.now = "e", 0, False, 1000.0
        self.watch = TopicWatch("load", "e", self.epoch_now, lambda: self.now)

    def epoch_now(self) -> str:
        self.asked += 1
        if self.silent:
            raise Unavailable("no answer")
        return self.epoch

    def after(self, seconds: float, away: bool = False) -> str:
        self.now += seconds
        return self.watch.look(away)


def test_it_asks_now_and_then() -> None:
    broker = Broker()
    for _ in range(10):
        assert broker.after(EVERY_S / 2 + 0.1) == ""
    assert broker.asked == 5


def test_another_topic_of_the_same_name_is_refused() -> None:
    broker = Broker()
    broker.epoch = "f"
    assert broker.after(EVERY_S - 1) == ""
    with pytest.raises(Unavailable, match=r"topic load was made anew.*start again"):
        broker.after(2)


def test_an_outage_is_followed_by_a_question_at_once() -> None:
    broker = Broker()
    assert broker.after(1, away=True) != ""
    assert broker.after(0.1, away=True) != ""
    assert broker.asked == 0
    assert broker.after(0.1) == ""
    assert broker.asked == 1
    assert broker.after(1) == "" and broker.asked == 1


def test_doubt_lasts_until_the_broker_says() -> None:
    broker = Broker()
    broker.silent = True
    broker.after(1, away=True)
    assert broker.after(0) != "" and broker.asked == 1
    assert broker.after(AGAIN_S / 2) != "" and broker.asked == 1
    broker.silent = False
    assert broker.after(AGAIN_S) == "" and broker.asked == 2


def test_a_broker_that_does_not_say_in_between_raises_no_doubt() -> None:
    broker = Broker()
    broker.silent = True
    assert broker.after(EVERY_S) == ""
    broker.epoch, broker.silent = "f", False
    with pytest.raises(Unavailable, match="anew"):
        broker.after(AGAIN_S)


def test_whoever_doubts_has_it_asked_at_the_next_look() -> None:
    broker = Broker()
    broker.silent = True
    broker.watch.doubt("the topic was not there")
    assert broker.after(0) == "the topic was not there"
    broker.silent = False
    assert broker.after(AGAIN_S) == "" and broker.asked == 2


def test_it_can_be_asked_at_once() -> None:
    broker = Broker()
    broker.silent = True
    broker.watch.ask()
    broker.epoch, broker.silent = "f", False
    with pytest.raises(Unavailable, match="anew"):
        broker.watch.ask()


def test_without_an_identity_nothing_is_asked() -> None:
    watch = TopicWatch("load", "e", None, lambda: 0.0)
    watch.ask()
    watch.doubt("it was away")
    assert watch.look(away=True) == ""
