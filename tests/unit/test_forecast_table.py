from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from flts_ray.champion import ChampionRef
from flts_ray.config import Config, parse_config
from flts_ray.errors import DataError, Unavailable
from flts_ray.jobs import forecast_table as job
from flts_ray.jobs.forecast_bucket import Wanted, forecast_bucket
from flts_ray.jobs.forecast_table import Champion, Outcome, forecast_table, served
from flts_ray.models import artifact
from flts_ray.models.base import fit_fully
from flts_ray.narrate import LogNarrator
from flts_ray.store import Store
from tests.served import HORIZON, TASK
from tests.unit.test_forecast_bucket import filled_set, write_mixed
from tests.unit.test_raw_series import ROLES, table_of


class Stages(LogNarrator):
    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def stage(self, name: str, done: int, total: int) -> None:
        self.calls.append((name, done, total))


@pytest.fixture
def champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Champion:
    """A champion in the root's store, and a session that knows of it."""
    root = str(tmp_path / "root")
    digest = artifact.save(fit_fully("ar", filled_set(), TASK), tmp_path / "root" / "models" / "1")
    ref = ChampionRef(1, digest, "ar", "0" * 64, "models/1", "run")
    known = Champion("http://127.0.0.1:1", root, "demo", ref)

    @contextmanager
    def session(config: Config) -> Iterator[Any]:
        yield SimpleNamespace(config=config)

    monkeypatch.setattr(job, "open_session", session)
    monkeypatch.setattr(job, "private_folder", lambda: tmp_path / "private")
    monkeypatch.setattr(job, "_champion", lambda services, store: known)
    return known


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = {"path": "unused.csv", "id": "unique_id", "covariates": ROLES, "until": "2000-01-01"}
    prepare = {"buckets": 3, "engine": "local"}
    root = str(tmp_path / "root")
    return parse_config({"name": "demo", "root": root, "data": data, "prepare": prepare})


def run(config: Config, tmp_path: Path, **about: Any) -> Outcome:
    about = {"narrator": Stages(), **about}
    return forecast_table(config, str(tmp_path / "new.csv"), str(tmp_path / "out"), **about)


def spilled(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "root" / "spill").rglob("*") if path.is_file()]


def test_every_bucket_is_a_part_and_the_manifest_counts_them(
    tmp_path: Path, config: Config, champion: Champion
) -> None:
    write_mixed(tmp_path / "new.csv")
    stages = Stages()
    made = run(config, tmp_path, narrator=stages, horizon=4, quantiles=(0.1, 0.9))
    assert made.made
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest == made.manifest
    assert {name: manifest[name] for name in ("series", "refused", "cold_start", "rows")} == {
        "series": 4, "refused": 3, "cold_start": 1, "rows": 16,
    }  # fmt: skip
    assert (manifest["version"], manifest["digest"]) == ("1", champion.ref.digest)
    assert manifest["input"]["files"] == 1
    files = [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")]
    assert sorted([*(file["path"] for file in manifest["files"]), "_manifest.json"]) == sorted(
        files
    )
    parts = pq.read_table(tmp_path / "out").sort_by(
        [("unique_id", "ascending"), ("ds", "ascending")]
    )
    model = served(champion)
    whole = forecast_bucket(table_of(tmp_path / "new.csv"), model, Wanted(4, (0.1, 0.9), 100))
    assert parts["unique_id"].equals(whole.table["unique_id"])
    assert parts["ds"].equals(whole.table["ds"])
    assert parts.column_names == whole.table.column_names
    refused = [pq.read_table(path) for path in sorted((tmp_path / "out" / "_refused").iterdir())]
    told = {row["unique_id"]: row["reason"] for part in refused for row in part.to_pylist()}
    assert told == {row["unique_id"]: row["reason"] for row in whole.refused.to_pylist()}
    assert ("split", 1, 1) in stages.calls
    assert stages.calls[-1] == ("forecast", 2, 2)
    assert spilled(tmp_path) == []


def test_the_same_again_is_done_already_unless_forced(
    tmp_path: Path, config: Config, champion: Champion
) -> None:
    write_mixed(tmp_path / "new.csv")
    first = run(config, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    again = run(config, tmp_path)
    assert (again.made, again.manifest) == (False, first.manifest)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    forced = run(config, tmp_path, force=True)
    assert (forced.made, forced.manifest) == (True, first.manifest)
    with pytest.raises(DataError, match="another input, version, horizon"):
        run(config, tmp_path, horizon=2)
    with (tmp_path / "new.csv").open("a") as stream:
        stream.write("s9,2020-09-13T12:00:00Z,1,0,0,2\n")
    with pytest.raises(DataError, match="another input"):
        run(config, tmp_path)


def test_an_interruption_leaves_no_manifest_and_no_pieces(
    tmp_path: Path, config: Config, champion: Champion, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mixed(tmp_path / "new.csv")

    class Stopped(Stages):
        def stage(self, name: str, done: int, total: int) -> None:
            if name == "forecast" and done:
                assert spilled(tmp_path)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, narrator=Stopped())
    assert spilled(tmp_path) == []
    assert not (tmp_path / "out" / "_manifest.json").exists()
    assert list((tmp_path / "out").rglob("*.parquet"))
    assert run(config, tmp_path).manifest["rows"] == 4 * HORIZON


def test_input_of_which_nothing_can_be_forecast_is_an_error(
    tmp_path: Path, config: Config, champion: Champion
) -> None:
    line = "short,2020-09-13T12:00:00Z,1,0,0,2\n"
    (tmp_path / "new.csv").write_text("unique_id,ds,y,event,lagged,number\n" + line)
    with pytest.raises(DataError, match=r"none of 1 series .*_refused tells why") as error:
        run(config, tmp_path)
    assert error.value.problems[0].startswith("known_future.event[1]: no value for step 1")
    assert not (tmp_path / "out" / "_manifest.json").exists()


def test_what_is_asked_is_checked_before_any_work(
    tmp_path: Path, config: Config, champion: Champion
) -> None:
    write_mixed(tmp_path / "new.csv")
    with pytest.raises(DataError, match="horizon: 7 steps are more than the model's 6"):
        run(config, tmp_path, horizon=7)
    with pytest.raises(DataError, match=r"quantiles\[0\]: 0\.999 lies outside"):
        run(config, tmp_path, quantiles=[0.999])
    assert not (tmp_path / "out").exists()


def test_the_columns_of_the_model_count_not_those_of_the_configuration(
    tmp_path: Path, config: Config, champion: Champion
) -> None:
    write_mixed(tmp_path / "new.csv")
    new = config.data.model_copy(update={"covariates": {**ROLES, "rain": "past"}})
    assert run(config.model_copy(update={"data": new}), tmp_path).manifest["series"] == 4
    lines = [line.rsplit(",", 1)[0] for line in (tmp_path / "new.csv").read_text().splitlines()]
    (tmp_path / "new.csv").write_text("\n".join(lines) + "\n")
    old = config.data.model_copy(update={"covariates": {}})
    with pytest.raises(DataError, match=r"column 'number' .* is missing"):
        run(config.model_copy(update={"data": old}), tmp_path, force=True)


def test_without_a_champion_there_is_nothing_to_forecast_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nobody:
        def __init__(self, *_: object) -> None: ...

        def current(self) -> None: ...

    monkeypatch.setattr(job, "RegistrySource", Nobody)
    services: Any = SimpleNamespace(config=SimpleNamespace(name="demo"), mlflow_uri="")
    with pytest.raises(Unavailable, match="demo has no champion yet; `flts train`"):
        job._champion(services, Store.open(str(tmp_path)))
