"""What no test may leave to the next one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A command that is called in a test sets up logging to a stream that ends with the test."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
