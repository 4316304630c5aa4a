"""Do forecasts over HTTP equal those made in memory?

Design choices: the model is loaded again as replicas load it, its networks exported, and asked
through a real socket with raw history, so that everything a caller meets is compared: the
artifact, the export, the grid, the calendar and JSON; nothing is left out: every window, step,
mean and level counts.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import uvicorn

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import Unavailable
from flts_ray.models import artifact
from flts_ray.models.base import Fitted, Forecast
from flts_ray.models.lean import lean_copy, load_lean
from flts_ray.panel import steps_after
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.app import build_app
from flts_ray.serve.engine import ModelSlot, ServedModel
from flts_ray.serve.history import stamps_text

POINTS_PER_REQUEST = 100_000
SERIES_PER_REQUEST = 1000
START_S = 30.0
REQUEST_S = 120.0


@dataclass(frozen=True)
class ParityResult:
    """`reason` says why a check did not pass; the difference is infinite without an answer."""

    max_relative_difference: float
    windows: int
    passed: bool
    reason: str | None = None


def check_parity(
    fitted: Fitted, artifact_folder: Path, windows: Windows, name: str, rtol: float = 1e-5
) -> ParityResult:
    """Compare `fitted.forecast(windows)` with the answers of the app over `artifact_folder`.

    Differences of mean and quantiles count relative to the forecast's size or, where larger, the
    series scale. Raises ArtifactError for a damaged artifact, Unavailable if no port opens.
    """
    offline = fitted.forecast(windows)
    with lean_copy(artifact_folder) as lean:
        loaded = load_lean(lean)
    served = ServedModel(name, "candidate", artifact.digest(artifact_folder), loaded)
    step = POINTS_PER_REQUEST // (windows.lookback + windows.horizon)
    step = min(max(step, 1), SERIES_PER_REQUEST)
    worst = 0.0
    with app_on_loopback(served) as url, httpx.Client(base_url=url, timeout=REQUEST_S) as http:
        for at in range(0, len(windows), step):
            part = slice(at, at + step)
            body = orjson.dumps(request_of(windows.part(part), offline.levels))
            answer = http.post("/v1/forecast", content=body)
            if answer.status_code != 200:
                reason = f"HTTP status {answer.status_code}: {answer.text[:500]}"
                return ParityResult(float("inf"), len(windows), False, reason)
            worst = max(worst, _difference(answer.content, offline, part, windows.scale[part]))
    if worst <= rtol:
        return ParityResult(worst, len(windows), True)
    reason = f"forecasts over HTTP differ by {worst:.2g} relative, more than {rtol:.2g}"
    return ParityResult(worst, len(windows), False, reason)


@contextmanager
def app_on_loopback(model: ServedModel) -> Iterator[str]:
    """The app with this model on a free port of 127.0.0.1; yields its address."""
    limits = ServeConfig(max_body_bytes=2**30, max_series=SERIES_PER_REQUEST, max_points=10**7)
    slot = ModelSlot(model.name, limits)
    slot.install(model)
    config = uvicorn.Config(
        build_app(slot), log_config=None, access_log=False, lifespan="on", ws="none"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="parity", daemon=True
        )
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            _wait_alive(url)
            yield url
        finally:
            server.should_exit = True
            thread.join()
            slot.close()


def _wait_alive(url: str) -> None:
    # The socket listens already, so one request waits until the app is up.
    try:
        httpx.get(f"{url}/healthz", timeout=START_S).raise_for_status()
    except httpx.HTTPError as error:
        raise Unavailable(
            f"{url}: the app did not start within {START_S:.0f} s ({error}); repeat when the "
            "machine is less busy"
        ) from error


def request_of(windows: Windows, levels: tuple[float, ...]) -> dict[str, Any]:
    """The body that sends these windows as raw history."""
    return {
        "series": [_series(windows, i) for i in range(len(windows))],
        "horizon": windows.horizon,
        "quantiles": list(levels),
    }


def _series(windows: Windows, i: int) -> dict[str, Any]:
    contract = windows.contract
    stamps = steps_after(windows.origin_us[i : i + 1], np.arange(-windows.lookback, 0), contract)
    known = windows.future[i, :, len(contract.calendar) :]
    return {
        "unique_id": windows.ids[i],
        "ds": stamps_text(stamps),
        "y": windows.y[i].tolist(),
        "observed": windows.observed[i].tolist(),
        "known_future": _columns(contract.known_future, known),
        "past": _columns(contract.past, windows.past[i]),
        "static": dict(zip(contract.static, windows.static[i].tolist(), strict=True)),
    }


def _columns(names: tuple[str, ...], values: np.ndarray) -> dict[str, list[float]]:
    return dict(zip(names, values.T.tolist(), strict=True))


def _difference(body: bytes, offline: Forecast, part: slice, scale: np.ndarray) -> float:
    """Largest relative difference of one answer; infinite where it is not a number."""
    online = orjson.loads(body)["forecasts"]
    mean = np.array([one["mean"] for one in online], dtype=np.float64)
    levels = [repr(level) for level in offline.levels]
    quantiles = np.array(
        [[one["quantiles"][level] for level in levels] for one in online], dtype=np.float64
    ).transpose(0, 2, 1)
    floor = np.nan_to_num(scale, nan=0.0)[:, None, None]
    got = np.concatenate([mean[..., None], quantiles], axis=-1)
    want = np.concatenate([offline.mean[part][..., None], offline.quantiles[part]], axis=-1)
    size = np.maximum(np.maximum(np.abs(want), floor), np.finfo(np.float64).tiny)
    worst = float((np.abs(got - want) / size).max())
    return worst if np.isfinite(worst) else float("inf")
