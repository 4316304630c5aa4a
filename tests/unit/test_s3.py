from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flts_ray.errors import ConfigError, Unavailable
from flts_ray.local.s3 import S3Server


def test_a_missing_server_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(Unavailable, match=r"flts-ray\[local\]"):
        S3Server(tmp_path).start()


def test_bucket_names_are_checked_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="three letters"):
        S3Server(tmp_path, bucket="ab")
    assert list(tmp_path.iterdir()) == []


def test_each_server_has_keys_of_its_own(tmp_path: Path) -> None:
    first, second = (S3Server(tmp_path).environment() for _ in range(2))
    assert first["AWS_SECRET_ACCESS_KEY"] != second["AWS_SECRET_ACCESS_KEY"]
    assert first["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
