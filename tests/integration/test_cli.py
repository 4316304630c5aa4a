"""The command line through its entry point, from a raw file to HTTP and back to nothing."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from flts_ray.jobs.announce import announced
from flts_ray.local.shared_mlflow import SharedMlflow, mlflow_in_use
from tests.running import FLTS, Place, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
HOURS = 600
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
ORIGIN = "2024-01-20T00:00:00Z"
SMALL = [
    f"--set={override}"
    for override in (
        "data.covariates={event: known_future}",
        "task.horizon=6",
        "models={seasonal_naive: {}, ar: {}}",
        "tune.budget_s=120",
        "serve={port: 0, min_replicas: 1, max_replicas: 1}",
        "ray={num_cpus: 2, object_store_mb: 100, dashboard_port: 0}",
    )
]


def line(name: str, hour: int, with_y: bool = True) -> str:
    stamp = (BEGIN + timedelta(hours=hour)).strftime("%Y-%m-%dT%H:%M:%SZ")
    event = int(hour * 31 % 5 == 0)
    y = 10 + hour % 24 + 3 * event + (hour * 7919 % 1000) / 500 if name != "flat" else 7
    return f"{name},{stamp},{y if with_y else ''},{event}"


NEW = [line(name, h) for name in ("s0", "new") for h in range(200)]
KNOWN = [line(name, h, with_y=False) for name in ("s0", "new") for h in range(200, 206)]


def write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(["unique_id,ds,y,event", *lines]) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A folder with a file of two good series and a constant one; nothing runs in the end."""
    made = Place(tmp_path_factory.mktemp("cli"))
    names = ("s0", "s1", "flat")
    write(made.folder / "load.csv", [line(name, h) for name in names for h in range(HOURS)])
    yield made
    assert made.processes() == []


@pytest.fixture(scope="module")
def root(place: Place) -> Path:
    return place.folder / ".flts" / "load"


@pytest.fixture(scope="module")
def config(place: Place) -> None:
    place.flts("init", "load.csv")


@pytest.fixture(scope="module")
def trained(place: Place, config: None) -> str:
    """What `flts train` printed. Afterwards there is a champion, and nothing runs."""
    done = place.flts("train", *SMALL)
    until(lambda: not place.processes(), 20, "the end of everything that training started")
    return done.stdout


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_prepare_works_once(place: Place, config: None, root: Path) -> None:
    first = place.flts("prepare", *SMALL)
    assert "flat" in first.stdout
    location = Path(first.stdout.splitlines()[-1])
    assert location.parent == root / "prepared"
    made = files(location)
    assert place.flts("prepare", *SMALL).stdout == first.stdout
    assert files(location) == made
    place.flts("prepare", *SMALL, "--force")
    assert files(location) != made


def test_the_installed_command_is_this_program(place: Place) -> None:
    command = str(Path(sys.executable).with_name("flts"))
    assert place.run(command, "--version").stdout == place.flts("--version").stdout


def test_mistakes_are_told_in_one_message(place: Place, config: None) -> None:
    done = place.flts("history", "-c", "none.yaml", expect=2)
    assert done.stderr.startswith("error: none.yaml: no such configuration file")
    done = place.flts("prepare", "--set", "data.timezone=UTC", expect=2)
    assert "data.timezone: unknown key; did you mean time_zone?" in done.stderr
    done = place.flts("prepare", "--set", "data.target=load", expect=2)
    assert "column 'load' (data.target) is missing" in done.stderr
    assert done.stdout == ""
    (place.folder / "bad.csv").write_text("unique_id,ds,y\ns0,2024-01-01,1\ns0,soon,2\n")
    done = place.flts("prepare", "--set=data.path=bad.csv", expect=2)
    assert "bad.csv" in done.stderr
    assert "line 3, column 'ds': 'soon': is no time" in done.stderr


def test_training_shows_the_candidates_and_the_decision(trained: str, root: Path) -> None:
    assert "seasonal_naive-01" in trained
    assert "ar-01" in trained
    assert "is accepted: it beats the baseline" in trained
    until(lambda: mlflow_in_use(root / "mlflow") is None, 20, "the tracking server's release")


def test_the_history_holds_the_promotion(place: Place, trained: str) -> None:
    assert "promote" in place.flts("history", *SMALL).stdout
    (entry,) = place.flts("history", *SMALL, "--json").stdout.splitlines()
    assert json.loads(entry)["champion"] == 1


@pytest.fixture(scope="module")
def mlflow(trained: str, root: Path) -> Iterator[SharedMlflow]:
    """The folder's tracking server, kept alive by a user of its own."""
    shared = SharedMlflow(root / "mlflow")
    shared.start()
    shared.wait()
    yield shared
    shared.stop()


def test_backtest_judges_the_study_and_the_champion(place: Place, mlflow: SharedMlflow) -> None:
    shown = place.flts("backtest", *SMALL).stdout
    assert [word for word in ("ar-01", "seasonal_naive-01", "version 1") if word not in shown] == []


def test_promotions_that_cannot_be_are_told(place: Place, mlflow: SharedMlflow) -> None:
    assert "is champion already" in place.flts("promote", "1", *SMALL).stdout
    assert "has no version 9" in place.flts("promote", "9", *SMALL, expect=2).stderr
    done = place.flts("rollback", *SMALL, expect=5)
    assert done.stderr == (
        "error: version 1 is the first champion, so there is none to go back to\n"
    )


def test_commands_share_the_running_tracking_server(place: Place, mlflow: SharedMlflow) -> None:
    shown = place.flts("status", *SMALL).stdout
    assert f"{mlflow.wait()} ready" in shown
    assert "version 1" in shown
    assert place.processes() == []


@pytest.fixture(scope="module")
def rows(place: Place, mlflow: SharedMlflow) -> list[dict[str, str]]:
    """Forecasts of a known series, by the champion loaded for the command."""
    known = ["--series", "s0", "--origin", ORIGIN, "--horizon", "4", "--quantile", "0.9"]
    place.flts("forecast", *SMALL, *known, "--output", "out.csv")
    with (place.folder / "out.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_a_known_series_is_forecast_without_a_server(rows: list[dict[str, str]]) -> None:
    assert [row["ds"] for row in rows] == [f"2024-01-20T0{h}:00:00Z" for h in range(4)]
    assert {row["unique_id"] for row in rows} == {"s0"}
    assert {"mean", "median", "q0.9", "model_version", "forecast_id"} < set(rows[0])
    hours = range(19 * 24, 19 * 24 + 4)
    for row, hour in zip(rows, hours, strict=True):
        truth = float(line("s0", hour).split(",")[2])
        assert abs(float(row["median"]) - truth) < 3


@pytest.fixture(scope="module")
def of_file(place: Place, mlflow: SharedMlflow) -> str:
    """What was printed when `new.csv`, a known and a new series, was forecast into a file."""
    write(place.folder / "new.csv", NEW + KNOWN)
    return place.flts("forecast", *SMALL, "-i", "new.csv", "-o", "out.parquet").stdout


def test_a_file_is_forecast_with_the_covariates_it_knows(place: Place, of_file: str) -> None:
    assert of_file == "12 rows written to out.parquet\n"
    table = pq.read_table(place.folder / "out.parquet")
    assert table["unique_id"].unique().to_pylist() == ["new", "s0"]
    assert table["ds"][0].as_py() == BEGIN + timedelta(hours=200)
    write(place.folder / "blind.csv", NEW + KNOWN[:-1])
    done = place.flts("forecast", *SMALL, "-i", "blind.csv", expect=2)
    assert done.stderr.startswith("error: new: known_future.event")
    assert "no value for step 6 of the horizon" in done.stderr


def test_any_number_of_series_is_forecast_into_a_folder(place: Place, mlflow: SharedMlflow) -> None:
    told = [line(name, h) for name in ("s0", "new", "short") for h in range(200)]
    known = [line(name, h, with_y=False) for name in ("s0", "new") for h in range(200, 206)]
    write(place.folder / "many.csv", told + known)
    ask = ["forecast", *SMALL, "-i", "many.csv", "-o"]
    done = place.flts(*ask, "many/")
    folder = (place.folder / "many").resolve()
    told_of = f"12 rows of 2 series written to {folder}; 1 series refused, its _refused tells why"
    assert done.stdout == told_of + "\n"
    one, many = pq.read_table(place.folder / "out.parquet"), pq.read_table(folder)
    for name in ("unique_id", "ds", "mean", "q0.1", "q0.975", "cold_start"):
        assert many[name].to_pylist() == one[name].to_pylist(), name
    again = place.flts(*ask, "many")
    assert f"12 rows of 2 series by version 1 are in {folder} already" in again.stdout


def test_refusals_of_the_model_are_code_2(place: Place, mlflow: SharedMlflow) -> None:
    ask = ["forecast", *SMALL, "--origin", ORIGIN]
    done = place.flts(*ask, "--series", "s0", "--quantile", "0.999", expect=2)
    assert "quantiles[0]: 0.999 lies outside the model's levels" in done.stderr
    done = place.flts(*ask, "--series", "flat", expect=2)
    assert "flat is in quarantine: every value is 7" in done.stderr


def test_the_tracking_server_ends_with_its_last_user(mlflow: SharedMlflow, root: Path) -> None:
    mlflow.stop()
    assert mlflow_in_use(root / "mlflow") is None


def test_an_api_that_is_away_is_code_5(place: Place, config: None) -> None:
    done = place.flts("forecast", "--series", "s0", "--url", "http://127.0.0.1:1", expect=5)
    assert "http://127.0.0.1:1 does not answer" in done.stderr
    done = place.flts("train", "--set", "mlflow.uri=http://127.0.0.1:1", expect=5)
    assert "mlflow.uri http://127.0.0.1:1 does not answer" in done.stderr
    done = place.flts("train", "--set", "ray.address=127.0.0.1:1", expect=5)
    assert "127.0.0.1:1 does not answer" in done.stderr


@pytest.fixture(scope="module")
def served(place: Place, trained: str, root: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = place.start([*FLTS, "serve", *SMALL], "serve.log")

    def up() -> object:
        assert process.poll() is None, (place.folder / "serve.log").read_text()
        return announced(root, "load")

    try:
        until(up, 180, "the announcement of the API")
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_api_answers_what_the_command_did(
    place: Place, root: Path, served: subprocess.Popen[bytes], rows: list[dict[str, str]]
) -> None:
    url = announced(root, "load")["api"]
    until(lambda: httpx.get(f"{url}/readyz").status_code == 200, 60, "a loaded champion")
    body = {"unique_id": "s0", "origin": ORIGIN, "horizon": 4, "quantiles": [0.9]}
    assert httpx.post(f"{url}/v1/forecast", json=body, timeout=60).status_code == 401
    allowed = {"authorization": f"Bearer {(root / 'run' / 'load.token').read_text()}"}
    answer = httpx.post(f"{url}/v1/forecast", json=body, headers=allowed, timeout=60).json()
    (one,) = answer["forecasts"]
    assert one["ds"] == [row["ds"] for row in rows]
    assert one["mean"] == pytest.approx([float(row["mean"]) for row in rows], rel=1e-9)
    assert one["quantiles"]["0.9"] == pytest.approx([float(r["q0.9"]) for r in rows], rel=1e-9)


def test_other_commands_find_the_running_api(
    place: Place, root: Path, served: subprocess.Popen[bytes]
) -> None:
    url = announced(root, "load")["api"]
    # With a tracking server that is away, only the running API can answer.
    away = "--set=mlflow.uri=http://127.0.0.1:1"
    known = ["--series", "s0", "--series", "s1", "--origin", ORIGIN]
    shown = place.flts("forecast", *SMALL, away, *known).stdout
    assert "load version 1 (ar)" in shown
    assert "2024-01-20 05:00" in shown
    assert f"{url} ready" in place.flts("status", *SMALL).stdout
    done = place.flts("serve", *SMALL, expect=4)
    assert f"load is served at {url} already" in done.stderr


def test_ctrl_c_stops_it_and_all_it_started(
    place: Place, root: Path, served: subprocess.Popen[bytes]
) -> None:
    running = "\n".join(place.processes())
    assert "raylet" in running
    assert "mlflow server" in running
    served.send_signal(signal.SIGINT)
    assert served.wait(90) == 130
    until(lambda: not place.processes(), 20, "the end of everything it started")
    assert list((root / "run").iterdir()) == []
    said = (place.folder / "serve.log").read_text()
    assert "serving; Ctrl-C stops everything" in said
    assert said.endswith("interrupted; everything that was started is stopped\n")
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_start_that_is_cut_short_leaves_nothing(
    place: Place, config: None, number: signal.Signals
) -> None:
    process = place.start([*FLTS, "train", *SMALL, "--set=root=cut"], "cut.log")
    starting = ("mlflow server", "gcs_server")
    try:
        until(
            lambda: all(any(s in one for one in place.processes()) for s in starting),
            120,
            "the start of MLflow and Ray",
        )
        process.send_signal(number)
        assert process.wait(60) == (-9 if number == signal.SIGKILL else 130)
    finally:
        process.kill()
    until(lambda: not place.processes(), 60, "the end of everything it started")
    # A process that is ending has no environment any more and its locks still.
    folder = place.folder / "cut" / "mlflow"
    until(lambda: mlflow_in_use(folder) is None, 20, "the release of the tracking server")
