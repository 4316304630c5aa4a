"""What no test may leave to the next one, and how a run ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# How long an example takes says more about the machine than about the code.
settings.register_profile("flts", deadline=None)
settings.load_profile("flts")
STATUS = pytest.StashKey[int]()
_ON_RAY = (
    "blend", "cli", "compact_ray", "ingest_ray", "jobs_api", "pipeline", "prepare_ray",
    "refit_ray", "scaling_kill", "serve", "spread", "study",
)  # fmt: skip
CLUSTERS = frozenset(f"tests/integration/test_{name}.py" for name in _ON_RAY)
"""Integration tests that start Ray: two clusters at a time are too much for two cores."""


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


class WholeFiles(LoadScopeScheduling):  # type: ignore[misc]
    """Of several processes each takes whole files, so what a file sets up is made once.

    All files that start Ray go to the same one.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "clusters" if file in CLUSTERS else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> WholeFiles:
    return WholeFiles(config, log)


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
        if config.pluginmanager.has_plugin("terminalreporter"):  # not where another process reports
            config.get_terminal_writer().flush()
        os._exit(status)
