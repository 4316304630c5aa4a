"""An MLflow server for one machine: SQLite, a folder for artifacts, one worker.

Design choices: the supported `mlflow server` command, because running its ASGI application
directly needs names MLflow keeps for itself; its job runner (seven more processes and 2-3 s of
the start) is off, since nothing here submits MLflow jobs; the server answers only requests whose
Host header is a loopback name with this port, which keeps foreign web pages out, or the name of
its folder, by which it is told from a server of other folders that was quicker to take the port;
unpickling and usage statistics are off.
"""

from __future__ import annotations

import sys
from hashlib import blake2b
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
        names = dict.fromkeys((host, "127.0.0.1", "localhost", name_of(self.folder)))
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
        return answers(self.uri, self.folder)

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


def name_of(folder: Path) -> str:
    """The host name that only the server of this folder answers to."""
    return f"flts-{blake2b(str(folder).encode(), digest_size=12).hexdigest()}"


def answers(uri: str, folder: Path | None = None) -> bool:
    """Whether an MLflow server is there; with `folder`, the one that keeps its state there."""
    uri = uri.rstrip("/")
    path, headers = "/health", {}
    if folder is not None:
        # A server checks the name in requests for anything but its health.
        path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
        headers = {"host": f"{name_of(folder)}:{uri.rpartition(':')[2]}"}
    try:
        return httpx.get(f"{uri}{path}", headers=headers, timeout=3.0).status_code == 200
    except (httpx.TransportError, httpx.InvalidURL):
        return False
