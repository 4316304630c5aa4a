"""The MLflow client, made once at the edge and bounded in time.

Design choices: one `MlflowClient` an object with its address inside, never MLflow's global
tracking address or active run, so that threads and several servers do not mix; a server that is
away is `Unavailable` after seconds, not MLflow's default of minutes; the two expected refusals
are errors of our own, so that callers need not know MLflow's; MLflow is imported when the first
client is made, because it costs more than a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import httpx

from flts_ray.errors import Conflict, DataError, Unavailable

BOUNDS = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow reads these at every request; a value that is already set stays."""
AWAY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "PERMISSION_DENIED", "UNAUTHENTICATED")


class Missing(DataError):
    """The tracking server holds no such thing."""

    status = 404


class AlreadyThere(Conflict):
    """The tracking server holds a thing of this name already."""


class TrackingClient:
    """`MlflowClient` of one server; every method raises Unavailable where that is away.

    Further: Missing, AlreadyThere; any other refusal stays an MlflowException.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        _probe(uri)
        for name, value in BOUNDS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        @wraps(method)
        def call(*args: Any, **options: Any) -> Any:
            from mlflow.exceptions import MlflowException
            from requests import RequestException

            try:
                return method(*args, **options)
            except RequestException as error:
                raise away(self.uri, error) from error
            except MlflowException as error:
                raise _translated(self.uri, error) from error

        return call


def away(uri: str, error: Exception) -> Unavailable:
    """What to tell about a tracking server that cannot be used."""
    return Unavailable(
        f"MLflow at {uri} cannot be used: {_short(error)}; start it there, or set mlflow.uri to "
        "a running server"
    )


def _translated(uri: str, error: Any) -> Exception:
    if error.error_code == "RESOURCE_DOES_NOT_EXIST":
        return Missing(f"MLflow at {uri}: {_short(error)}; check the name and the address")
    if error.error_code == "RESOURCE_ALREADY_EXISTS":
        return AlreadyThere(f"MLflow at {uri}: {_short(error)}; use that one")
    if error.error_code in AWAY:
        return away(uri, error)
    known: Exception = error
    return known


def _probe(uri: str) -> None:
    """Fail in seconds where nobody listens, before MLflow is imported."""
    try:
        httpx.get(f"{uri.rstrip('/')}/health", timeout=httpx.Timeout(10, connect=3))
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise away(uri, error) from error


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
