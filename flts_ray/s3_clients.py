"""Clients of an S3 server, made from the environment.

Design choices: obstore for small objects, listings and conditional writes, pyarrow for scans; keys
that are not set are left to each client's own chain (roles, instance metadata); plain http is
allowed when the endpoint says so.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from obstore.store import S3Store
from pyarrow import fs


def endpoint() -> str | None:
    """Address of the S3 server; None: AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def object_client(bucket: str, prefix: str) -> Any:
    """Client for the objects below a prefix of a bucket."""
    address = endpoint()
    named = {
        "endpoint": address,
        "access_key_id": os.environ.get("AWS_ACCESS_KEY_ID"),
        "secret_access_key": os.environ.get("AWS_SECRET_ACCESS_KEY"),
        "session_token": os.environ.get("AWS_SESSION_TOKEN"),
    }
    return S3Store(
        bucket,
        prefix=prefix or None,
        region=_region(),
        config={name: value for name, value in named.items() if value},
        client_options={
            "allow_http": bool(address and address.startswith("http://")),
            "connect_timeout": timedelta(seconds=10),
            "read_timeout": timedelta(seconds=60),
            "timeout": timedelta(minutes=10),
        },
        retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=30)},
    )


def scan_filesystem() -> fs.FileSystem:
    """File system whose paths start with the bucket."""
    named = {
        "endpoint_override": endpoint(),
        "access_key": os.environ.get("AWS_ACCESS_KEY_ID"),
        "secret_key": os.environ.get("AWS_SECRET_ACCESS_KEY"),
        "session_token": os.environ.get("AWS_SESSION_TOKEN"),
    }
    return fs.S3FileSystem(region=_region(), **{name: v for name, v in named.items() if v})
