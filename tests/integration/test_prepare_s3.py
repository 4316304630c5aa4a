"""Preparation from and into an S3 bucket gives the bytes of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from flts_ray.local.s3 import S3Server
from flts_ray.prepare.loading import open_prepared
from flts_ray.prepare.run import prepare
from flts_ray.store import Store
from tests.raw_files import contents, load_config, write_load

pytestmark = pytest.mark.integration


def test_a_bucket_holds_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_load(tmp_path / "in")
    local = contents(prepare(load_config(tmp_path)))
    with S3Server(tmp_path / "s3") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        config = load_config(tmp_path).model_copy(update={"root": f"{server.uri}/root"})
        made = prepare(config)
        store = Store.open(config.root)
        folder = made.location.removeprefix(f"{config.root}/")
        stored = {item.key for item in store.list()}
        assert stored == {f"{folder}/{path}" for path in local}
        assert all(store.get(f"{folder}/{path}") == data for path, data in local.items())
        assert open_prepared(config.root, made.hash).arrays(["s1"]).ids == ("s1",)
        assert prepare(config) == made
