from __future__ import annotations

from flts_ray.streams.outage import Outage


class Broker:
    """A clock, and a broker that answers or not."""

    def __init__(self) -> None:
        self.now = 100.0
        self.answers = True
        self.asked = 0

    def ask(self) -> bool:
        self.asked += 1
        return self.answers

    def outage(self) -> Outage:
        return Outage("h:1", self.ask, quiet_s=3.0, clock=lambda: self.now)


def test_a_broker_that_sends_is_never_asked() -> None:
    broker = Broker()
    outage = broker.outage()
    for _ in range(20):
        broker.now += 1
        outage.heard()
        outage.quiet()
    assert (broker.asked, outage.away_since) == (0, None)


def test_a_quiet_broker_is_asked_now_and_then() -> None:
    broker = Broker()
    outage = broker.outage()
    for _ in range(12):
        broker.now += 1
        outage.quiet()
    assert (broker.asked, outage.away_since) == (4, None)


def test_an_outage_begins_with_the_last_sign_of_life_and_ends_with_the_next() -> None:
    broker = Broker()
    outage = broker.outage()
    broker.now = 110.0
    outage.heard()
    broker.answers = False
    for broker.now in (112.0, 114.0, 118.0, 122.0):
        outage.quiet()
    assert outage.away_since == 110.0
    broker.answers = True
    broker.now = 126.0
    outage.quiet()
    assert outage.away_since is None


def test_an_error_of_the_client_is_an_outage_at_once() -> None:
    broker = Broker()
    outage = broker.outage()
    broker.now = 101.0
    outage.lost("connection refused")
    assert outage.away_since == 100.0
    outage.heard()
    assert outage.away_since is None
    assert broker.asked == 0
