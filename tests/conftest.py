"""What no test may leave to the next one, and how a run ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("flts", deadline=None)
settings.load_profile("flts")
STATUS = pytest.StashKey[int]()


@pytest.fixture(autouse=True, scope="module")
def own_environment() -> Iterator[None]:
    """What a cluster of one module needs in the environment is wrong for that of the next."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A command that is called in a test sets up logging to a stream that ends with the test."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def pytest_configure(config: pytest.Config) -> None:
    """A run in the background is started with interrupts ignored, which every command inherits."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave at once where real services were used.

    The threads of Ray, librdkafka, Arrow and obstore, which no program has in one process but this
    one, sometimes crash each other while the interpreter ends; the verdict is out by then.
    """
    status = config.stash.get(STATUS, None)
    if status is not None and not config.getoption("collectonly"):
        config.get_terminal_writer().flush()
        os._exit(status)
