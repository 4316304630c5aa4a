from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flts_ray.errors import ConfigError, Unavailable
from flts_ray.local.s3 import S3Server, check_bucket


def test_a_missing_server_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(Unavailable, match=r"flts-ray\[local\]"):
        S3Server(tmp_path).start()


def test_bucket_names_are_checked_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 to 63"):
        S3Server(tmp_path, bucket="ab")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["ab", "Loads", "my_loads", "a..b", "a.-b", "a-.b", "-loads", "loads-", "10.0.0.1", "a" * 64],
)
def test_names_that_s3_does_not_allow(name: str) -> None:
    with pytest.raises(ConfigError, match="choose another name"):
        check_bucket(name)


@pytest.mark.parametrize("name", ["abc", "a--b.c1", "1.2.3", "a" * 63])
def test_names_that_s3_allows(name: str) -> None:
    check_bucket(name)


def test_each_server_has_keys_of_its_own(tmp_path: Path) -> None:
    first, second = (S3Server(tmp_path).environment() for _ in range(2))
    assert first["AWS_SECRET_ACCESS_KEY"] != second["AWS_SECRET_ACCESS_KEY"]
    assert first["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
