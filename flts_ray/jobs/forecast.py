"""Forecasts from the command line, by the same code that answers HTTP.

Design choices: a running API is asked; without one the champion is loaded behind the same app on
a loopback port for the length of the command, so there is one way to read a request and one
answer; what is refused is refused with the API's own words.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from flts_ray.config import Config
from flts_ray.errors import ConfigError, DataError, Unavailable
from flts_ray.jobs.announce import announced
from flts_ray.jobs.histories import About, histories
from flts_ray.jobs.own_token import VARIABLE, token_for
from flts_ray.jobs.session import local_folder, open_session
from flts_ray.jobs.status import prepared_sets
from flts_ray.prepare.loading import PreparedSet
from flts_ray.store import Store

SERIES_PER_REQUEST = 100
VALUES_PER_REQUEST = 200_000
"""Numbers and stamps in one request, some megabytes."""


def forecast(
    config: Config,
    *,
    series: Sequence[str] = (),
    path: str | None = None,
    origin: str | None = None,
    horizon: int | None = None,
    quantiles: Sequence[float] = (),
    url: str | None = None,
) -> list[dict[str, Any]]:
    """Answers of the API for known series, or for the histories in a file.

    Raises DataError with what the API refused, Unavailable without a champion or an answer.
    """
    if not series and path is None:
        raise DataError("nothing to forecast: give --series with known ids, or --input with a file")
    common: dict[str, Any] = {"horizon": horizon} if horizon is not None else {}
    if quantiles:
        common["quantiles"] = list(quantiles)
    with _api(config, url) as api:
        bodies: list[dict[str, Any]] = [{"unique_id": name} for name in series]
        if path is not None:
            bodies += histories(config, path, About.of_model(api.get("/v1/model")))
        if origin is not None:
            bodies = [body | {"origin": origin} for body in bodies]
        try:
            return [_asked(api, common, part) for part in parts(bodies)]
        except DataError as refusal:
            unknown = (refusal.field or "").endswith("unique_id")
            reasons = _why_unknown(config, series) if unknown else ()
            raise DataError(str(refusal), field=refusal.field, problems=reasons) from None


def _asked(api: ForecastApi, common: dict[str, Any], part: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask for some series; a refusal names the one it is about, not its place in the request."""

    def name(found: re.Match[str]) -> str:
        return f"{part[int(found[1])]['unique_id']}: "

    try:
        return api.ask(common | {"series": part})
    except DataError as refusal:
        text = re.sub(r"^series\[(\d+)\]\.", name, str(refusal))
        raise DataError(text, field=refusal.field) from None


class ForecastApi:
    """The forecast API at an address.

    token: what it asks for, None where it is open. cert_file: a certificate to trust besides
    those of the system.
    """

    def __init__(self, url: str, token: str | None = None, cert_file: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._trusted: ssl.SSLContext | bool = True
        if cert_file is not None and self.url.startswith("https:"):
            self._trusted = ssl.create_default_context()
            self._trusted.load_verify_locations(cert_file)
            self._trusted.check_hostname = False

    def get(self, path: str) -> dict[str, Any]:
        return self._call("GET", path, None)

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Forecasts. Raises DataError for a refusal, Unavailable where nobody answers."""
        return self._call("POST", "/v1/forecast", body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        try:
            answer = self._sent(method, path, body)
            said = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(
                f"{self.url} does not answer: {error}; is `flts serve` running?"
            ) from error
        except ValueError:
            said = None
        if answer.status_code in (401, 403):
            raise ConfigError(
                f"{self.url} refuses the token: set {VARIABLE} to one that `flts token add` made"
            )
        if answer.status_code == httpx.codes.OK and isinstance(said, dict):
            return said
        problem = said.get("error") if isinstance(said, dict) else None
        if not isinstance(problem, dict) or answer.status_code in (404, 405):
            raise Unavailable(
                f"{self.url}{path} answered {answer.status_code}, but not as a forecast API does; "
                "check the address"
            )
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            after = answer.headers.get("retry-after", "a few")
            raise Unavailable(f"{problem.get('message')}; repeat after {after} s")
        if answer.status_code < 500:
            raise DataError(str(problem.get("message")), field=problem.get("field"))
        raise Unavailable(str(problem.get("message")))

    def _sent(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """Ask again once where the connection broke: a forecast can be asked for twice."""

        def send() -> httpx.Response:
            return httpx.request(
                method,
                f"{self.url}{path}",
                json=body,
                timeout=60.0,
                headers=self._headers,
                verify=self._trusted,
            )

        try:
            return send()
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            return send()


@contextmanager
def _api(config: Config, url: str | None) -> Iterator[ForecastApi]:
    """A running API, or one that lives as long as the block."""
    found = url or announced(local_folder(config), config.name).get("api")
    if found is not None:
        tls = config.serve.tls
        yield ForecastApi(found, token_for(config), None if tls is None else tls.cert_file)
        return
    from flts_ray.serve.parity import app_on_loopback
    from flts_ray.serve.source import RegistrySource

    with open_session(config) as services:
        source = RegistrySource(
            services.mlflow_uri, config.root, config.name, services.folder / "fetched"
        )
        champion = source.current()
        if champion is None:
            raise Unavailable(f"{config.name} has no champion yet; `flts train` makes one")
        with app_on_loopback(source.load(champion)) as address:
            yield ForecastApi(address)


def parts(bodies: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Bodies in order, as many to a request as it may hold."""
    part: list[dict[str, Any]] = []
    values = 0
    for body in bodies:
        size = _values(body)
        if part and (len(part) == SERIES_PER_REQUEST or values + size > VALUES_PER_REQUEST):
            yield part
            part, values = [], 0
        part.append(body)
        values += size
    if part:
        yield part


def _values(body: dict[str, Any]) -> int:
    columns = [*body.get("known_future", {}).values(), *body.get("past", {}).values()]
    return sum(map(len, [body.get("ds", ()), body.get("y", ()), *columns]))


def _why_unknown(config: Config, series: Sequence[str]) -> list[str]:
    """What the prepared sets of this root say about series that the champion does not know."""
    store = Store.open(config.root)
    reasons: dict[str, str] = {}
    for manifest in prepared_sets(store) if series else ():
        if manifest.quarantine:
            for row in PreparedSet(store.root, manifest).quarantine().to_pylist():
                if row["unique_id"] in series:
                    reasons[row["unique_id"]] = row["reason"]
    return [f"{name} is in quarantine: {reason}" for name, reason in sorted(reasons.items())]
