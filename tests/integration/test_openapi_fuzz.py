"""The published schemas against the service, by generated requests."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import positive_data_acceptance

from tests.unit.test_openapi import app

pytestmark = pytest.mark.integration
POSTED = ("/v1/forecast", "/v1/forecast:batch", "/v1/timeseries/forecast", "/predict")


@pytest.fixture(scope="module")
def operations() -> dict[str, Any]:
    schema: Any = schemathesis.openapi.from_asgi("/openapi.json", app())
    found = [one.ok() for one in schema.get_all_operations()]
    return {one.path: one for one in found}


@pytest.mark.parametrize("path", POSTED)
def test_whatever_is_sent_is_answered_as_described(path: str, operations: dict[str, Any]) -> None:
    @settings(max_examples=75, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operations[path].as_strategy())
    def check(case: Any) -> None:
        # What a history must hold depends on the champion, which no schema knows.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()


def test_routes_without_a_body_answer_as_described(operations: dict[str, Any]) -> None:
    for path, operation in operations.items():
        if path not in POSTED:
            operation.Case().call_and_validate()
