"""An MLflow server for one machine: SQLite, a folder for artifacts, one worker.

Design choices: the supported `mlflow server` command, because running its ASGI application
directly needs names MLflow keeps for itself; its job runner (seven more processes and 2-3 s of
the start) is off, since nothing here submits MLflow jobs; the server answers only requests whose
Host header is a loopback name with this port, which keeps foreign web pages out; unpickling and
usage statistics are off.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

import httpx

from flts_ray.local.process import ManagedProcess, free_port

ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "OMP_NUM_THREADS": "1",
}
LOCK = "server.lock"
_DATABASE, _UNFINISHED = "mlflow.db", "unfinished"


class MlflowServer:
    """Context manager around a server that keeps all its state in `folder`.

    `port` is taken if it is free, else any free one. `start` returns at once and `wait` when the
    server answers; the `with` statement does both. `users`: see `ManagedProcess`.
    """

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        host: str = "127.0.0.1",
        users: Path | None = None,
    ) -> None:
        self.folder = Path(folder).resolve()
        self.port = free_port(host, port)
        self.uri = f"http://{host}:{self.port}"
        self._process = ManagedProcess(
            self._command(host),
            name="MLflow",
            log=self.folder / "server.log",
            env=ENVIRONMENT,
            lock=self.folder / LOCK,
            users=users,
            before=self._forget_unfinished,
            note=self.uri,
        )

    def start(self) -> None:
        """Start the server. Raises Conflict if another one serves the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process.start()

    def wait(self, timeout_s: float = 90.0) -> None:
        """Wait until it answers. Raises Unavailable with the end of its log."""
        self._process.wait_until(self._answers, timeout_s)
        database_made(self.folder)

    def stop(self) -> None:
        self._process.stop()

    def __enter__(self) -> MlflowServer:
        self.start()
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _command(self, host: str) -> list[str]:
        names = dict.fromkeys((host, "127.0.0.1", "localhost"))
        return [
            *(sys.executable, "-m", "mlflow", "server"),
            *("--backend-store-uri", f"sqlite:///{self.folder / _DATABASE}"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
            "--serve-artifacts",
            *("--workers", "1"),
            *("--host", host, "--port", str(self.port)),
            *("--allowed-hosts", ",".join(f"{name}:{self.port}" for name in names)),
            *("--uvicorn-opts", "--no-access-log"),
        ]

    def _answers(self) -> bool:
        return answers(self.uri)

    def _forget_unfinished(self) -> None:
        """Remove a database whose making was cut off: it cannot be repaired, and holds nothing."""
        mark = self.folder / _UNFINISHED
        if mark.exists():
            for path in self.folder.glob(f"{_DATABASE}*"):
                path.unlink()
        if not (self.folder / _DATABASE).exists():
            mark.touch()


def database_made(folder: Path) -> None:
    """To be said by everybody who has seen the server of a folder answer, before using it."""
    (Path(folder) / _UNFINISHED).unlink(missing_ok=True)


def answers(uri: str) -> bool:
    """Whether an MLflow server is there."""
    try:
        return httpx.get(f"{uri.rstrip('/')}/health", timeout=3.0).status_code == 200
    except (httpx.TransportError, httpx.InvalidURL):
        return False
