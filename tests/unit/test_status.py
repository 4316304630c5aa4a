from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import ArtifactError
from flts_ray.jobs.announce import announce
from flts_ray.jobs.status import status_of
from flts_ray.prepare.run import prepare
from flts_ray.promotions import PromotionLog, promoted
from flts_ray.store import Store
from flts_ray.tune.outcome import TrialOutcome, write_outcome
from flts_ray.tune.space import sample_trials
from tests.raw_files import load_config, write_load


class Services(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response({"/readyz": 503, "/health": 200}.get(self.path, 404))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Services)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def config_of(root: Path, **sections: object) -> Config:
    return parse_config({"name": "demo", "root": str(root), "data": {"path": "x.csv"}, **sections})


def test_an_empty_root_has_nothing_and_stays_empty(tmp_path: Path) -> None:
    status = status_of(config_of(tmp_path / "none"))
    assert (status.prepared, status.studies, status.newest, status.services) == ((), {}, None, {})
    assert not (tmp_path / "none").exists()


def test_prepared_sets_are_listed(tmp_path: Path) -> None:
    write_load(tmp_path / "in")
    made = prepare(load_config(tmp_path))
    other = prepare(load_config(tmp_path, task={"horizon": 3}))
    status = status_of(load_config(tmp_path))
    assert {one.hash for one in status.prepared} == {made.hash, other.hash}


def test_a_damaged_set_is_named(tmp_path: Path) -> None:
    Store.open(str(tmp_path)).put("prepared/abc/manifest.json", b"{")
    with pytest.raises(ArtifactError, match=r"prepared/abc/manifest\.json.*flts prepare"):
        status_of(config_of(tmp_path))


def test_trials_and_the_champion_are_told(tmp_path: Path) -> None:
    config = config_of(tmp_path, models={"seasonal_naive": {}, "ar": {"trials": 2}})
    plans = sample_trials(config.models, config.tune.seed)
    study = tmp_path / "studies" / "abc"
    for plan, state, error in zip(plans, ("finished", "failed"), (None, "no memory"), strict=False):
        (study / "artifacts" / plan.trial_id).mkdir(parents=True)
        outcome = TrialOutcome(plan.trial_id, plan.kind, plan.params, state, error)  # type: ignore[arg-type]
        write_outcome(study, outcome)
    log = PromotionLog(Store.open(str(tmp_path)), "demo")
    entry = promoted(None, 4, None, "key", "better", datetime(2024, 1, 1, tzinfo=UTC), "me")
    log.append(entry)
    status = status_of(config)
    assert list(status.studies) == ["abc"]
    assert [(one.status, one.error) for one in status.studies["abc"]] == [
        ("finished", None),
        ("failed", "no memory"),
    ]
    assert status.newest == entry
    assert status_of(config_of(tmp_path, name="other")).newest is None


def test_services_are_asked_how_they_are(tmp_path: Path, address: str) -> None:
    config = config_of(tmp_path, mlflow={"uri": f"{address}/"})
    with announce(tmp_path, "demo", {"api": address, "dashboard": "http://127.0.0.1:1"}):
        services = status_of(config).services
    assert services == {
        "mlflow": (f"{address}/", "ready"),
        "api": (address, "answers 503"),
        "dashboard": ("http://127.0.0.1:1", "does not answer (ConnectError)"),
    }
    assert set(status_of(config).services) == {"mlflow"}


def test_an_address_that_is_none_does_not_answer(tmp_path: Path) -> None:
    config = config_of(tmp_path, mlflow={"uri": "sqlite:///mlflow.db"})
    assert status_of(config).services["mlflow"][1].startswith("does not answer")
