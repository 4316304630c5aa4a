from __future__ import annotations

import pytest

from flts_ray.errors import Unavailable
from flts_ray.local.process import free_port
from flts_ray.tracking import TrackingClient


def test_a_server_that_is_away_is_named_with_what_to_do() -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=rf"MLflow at {uri} .*set mlflow\.uri"):
        TrackingClient(uri)


def test_an_address_that_is_none_is_unavailable_too() -> None:
    with pytest.raises(Unavailable, match="MLflow at mlruns"):
        TrackingClient("mlruns")
