from __future__ import annotations

import re
from pathlib import Path

import pytest

from flts_ray.config_stream import StreamConfig
from flts_ray.errors import ConfigError
from flts_ray.streams.access import Login, NotTaken, login, refused, silent, unacknowledged
from flts_ray.streams.connect import epoch_of

SASL = StreamConfig(security="SASL_SSL", sasl_mechanism="SCRAM-SHA-256")
ENVIRONMENT = {"KAFKA_USERNAME": "anna", "KAFKA_PASSWORD": "s3cret"}


def test_every_part_of_a_topics_identity_changes_its_epoch() -> None:
    first = epoch_of(("c", "t"), "load", 0)
    others = [
        epoch_of(("d", "t"), "load", 0),
        epoch_of(("c", "u"), "load", 0),
        epoch_of(("c", "t"), "other", 0),
        epoch_of(("c", "t"), "load", 1),
        epoch_of(("ct", ""), "load", 0),
        epoch_of(("", ""), "load", 0),
    ]
    assert len({first, *others}) == 7
    assert all(re.fullmatch("[0-9a-f]{16}", epoch) for epoch in (first, *others))


def test_an_epoch_is_the_same_in_every_process_and_version() -> None:
    assert epoch_of(("c", "t"), "load", 0) == "970e94a56ba388e9"


def test_only_sasl_needs_a_name_and_a_password() -> None:
    assert login(StreamConfig(), {}) is None
    assert login(StreamConfig(security="SSL"), ENVIRONMENT) is None
    assert login(SASL, ENVIRONMENT) == Login("anna", "s3cret")


@pytest.mark.parametrize("missing", ENVIRONMENT)
def test_a_missing_name_or_password_is_named(missing: str) -> None:
    given = {name: value for name, value in ENVIRONMENT.items() if name != missing}
    with pytest.raises(ConfigError, match=missing) as caught:
        login(SASL, given)
    assert not any(value in str(caught.value) for value in given.values())


def test_a_password_is_not_shown() -> None:
    assert "s3cret" not in repr(login(SASL, ENVIRONMENT))


def test_a_missing_file_of_keys_is_named(tmp_path: Path) -> None:
    place = tmp_path / "ca.pem"
    stream = StreamConfig(security="SSL", ca_file=str(place))
    with pytest.raises(ConfigError, match=r"stream\.ca_file: .*ca\.pem"):
        login(stream, {})
    place.write_text("")
    assert login(stream, {}) is None


def test_messages_name_the_brokers_and_what_to_do() -> None:
    assert "h:1,h:2: no broker answered" in str(silent("h:1,h:2", "why"))
    assert "KAFKA_USERNAME" in str(refused("h:1", "why"))
    told = str(unacknowledged("h:1", 5, 2.0, ["too large", "too large", "no rights"]))
    assert "5 messages" in told
    assert "too large (2 times); no rights (1 times); no answer to 2 within 2 s" in told


def test_what_is_refused_for_good_is_told_apart() -> None:
    large = ["MessageSizeTooLargeError: [Error 10]", "MSG_SIZE_TOO_LARGE: Broker: too large"]
    assert isinstance(unacknowledged("h:1", 2, 2.0, large), NotTaken)
    assert isinstance(refused("h:1", large[0]), NotTaken)
    assert not isinstance(unacknowledged("h:1", 3, 2.0, large), NotTaken)
    assert not isinstance(unacknowledged("h:1", 2, 2.0, [large[0], "timed out"]), NotTaken)
    assert not isinstance(refused("h:1", "TopicAuthorizationFailedError"), NotTaken)
