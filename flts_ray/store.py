"""One object store: a folder on this machine or `s3://bucket/prefix`.

Design choices: four small verbs (`put_new`, `put`, `get`, `list`) that mean the same on both kinds;
`put_new` is the only lock the project needs, and losing that race is a value, not an exception;
the endpoint and the keys of S3 come from the environment only (AWS_ENDPOINT_URL_S3 or
AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION), so a
store that travels to another process is only its address and opens itself there again.
"""

from __future__ import annotations

import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import obstore
from obstore import exceptions as refused
from pyarrow import fs

from flts_ray.atomic_files import PART, appearing, create_new
from flts_ray.errors import ConfigError, DataError, Unavailable
from flts_ray.s3_clients import object_client, scan_filesystem
from flts_ray.store_errors import (
    Denied,
    NotFound,
    explained,
    hidden_folder,
    is_file,
    local,
    vanishing,
)

__all__ = [
    "BucketStore",
    "Created",
    "Denied",
    "Exists",
    "FolderStore",
    "NotFound",
    "ObjectInfo",
    "Store",
]


@dataclass(frozen=True)
class Created:
    """`put_new` stored the bytes; nobody else did."""

    key: str


@dataclass(frozen=True)
class Exists:
    """Somebody else stored this key first; their bytes are kept."""

    key: str


@dataclass(frozen=True)
class ObjectInfo:
    """`size` in bytes; `etag` changes with the content ("" in a folder).

    `metadata` is what `put_new` was given, names in lower case; only `head` of a bucket knows it.
    """

    key: str
    size: int
    etag: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)


def confined(key: str) -> str:
    """The key itself; raises DataError unless it is a plain relative posix path."""
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or not key.isprintable() or "\\" in key:
        raise DataError(
            f"{key!r} is no store key; write a relative path such as prepared/manifest.json, "
            "without '..', empty parts, backslashes or control characters"
        )
    return key


class Store(ABC):
    """Bytes under keys. Errors: NotFound (no such key), Unavailable (the store cannot be used),
    of which Denied is an answer: the store refuses this request."""

    def __init__(self, root: str) -> None:
        self.root = root

    @staticmethod
    def open(uri: str) -> Store:
        """The store at a folder, `file://` or `s3://bucket/prefix`; nothing is created or asked."""
        scheme, separator, rest = uri.partition("://")
        if not separator or scheme == "file":
            return FolderStore(rest if separator else uri)
        if scheme == "s3" and rest.strip("/"):
            return BucketStore(rest)
        raise ConfigError(f"{uri!r} is no store; write a folder or s3://bucket/prefix")

    def __reduce__(self) -> tuple[Callable[[str], Store], tuple[str]]:
        return Store.open, (self.root,)

    def uri(self, key: str = "") -> str:
        """Full address of a key; of the store without one."""
        return f"{self.root.rstrip('/')}/{confined(key)}" if key else self.root

    @abstractmethod
    def put_new(
        self, key: str, data: bytes, metadata: Mapping[str, str] | None = None
    ) -> Created | Exists:
        """Store under a key that nobody has used; of any number of callers one gets Created.

        Readers see all of it or nothing. If the answer to a stored write is lost and the client
        repeats it, the winner too may be told Exists: compare what `get` returns where it matters.
        Raises Unavailable if nobody knows whether it was stored; repeat it then.
        `metadata` (ASCII) is kept beside the object in a bucket; a folder does not keep it.
        """

    def probe_put_new(self) -> None:
        """Raises Unavailable unless the store really refuses the second of two new writes."""
        key = f"probes/{uuid.uuid4().hex}"
        try:
            self.put_new(key, b"first")
            refused_second = isinstance(self.put_new(key, b"second"), Exists)
            if not refused_second or self.get(key) != b"first":
                raise Unavailable(
                    f"{self.root}: two conditional writes of one new key both succeeded, so "
                    "exactly-once is impossible here: it needs conditional writes "
                    "(If-None-Match: *); use a store that has them"
                )
        finally:
            self.delete(key)

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Store, replacing what was there at once as a whole."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The bytes. Raises NotFound."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """At most `length` (> 0) bytes from `start` (inside of the object). Raises NotFound."""

    @abstractmethod
    def head(self, key: str) -> ObjectInfo:
        """Size and metadata, without the bytes. Raises NotFound."""

    @abstractmethod
    def exists(self, key: str) -> bool: ...

    @abstractmethod
    def list(self, prefix: str = "", after: str | None = None) -> list[ObjectInfo]:
        """All objects below the folder `prefix` at any depth, sorted by key.

        `after`: only those whose key sorts behind this one.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Forget a key; one that is not there is no error."""

    @abstractmethod
    def filesystem(self) -> tuple[fs.FileSystem, str]:
        """File system for scans, and the path of the store's root in it."""

    @abstractmethod
    def _upload(self, source: Path, key: str) -> None: ...

    @abstractmethod
    def _download(self, key: str, target: BinaryIO) -> None: ...

    def upload_dir(self, folder: str | Path, prefix: str) -> int:
        """Store every file below `folder` under `prefix`, streamed, sorted; returns how many."""
        folder = Path(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            raise NotFound(f"{folder}: no files to upload; check the folder")
        for path in files:
            self._upload(path, confined(f"{prefix}/{path.relative_to(folder).as_posix()}"))
        return len(files)

    def download_dir(self, prefix: str, folder: str | Path) -> int:
        """Copy every object below `prefix` into `folder`, streamed; returns how many.

        Raises NotFound if there is none. Each file appears whole under its name.
        """
        found = self.list(prefix)
        if not found:
            raise NotFound(f"{self.uri(prefix)}: nothing is stored there; check the address")
        for item in found:
            inner = confined(item.key.removeprefix(prefix).lstrip("/"))
            path = Path(folder) / inner
            with local(path), appearing(path) as stream:
                self._download(item.key, stream)
        return len(found)


class FolderStore(Store):
    """A folder of this machine. Writes go to a hidden part file, then appear under their name."""

    def __init__(self, root: str) -> None:
        self._folder = Path(root).expanduser().absolute()
        super().__init__(str(self._folder))

    def put_new(
        self, key: str, data: bytes, metadata: Mapping[str, str] | None = None
    ) -> Created | Exists:
        path = self._path(key)
        with local(path):
            return Created(key) if create_new(path, data) else Exists(key)

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with local(path), appearing(path) as stream:
            stream.write(data)

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with local(path):
            return path.read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        path = self._path(key)
        with local(path), path.open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    def head(self, key: str) -> ObjectInfo:
        path = self._path(key)
        if not is_file(path):
            raise NotFound(f"{path}: nothing is stored there; check the address")
        with local(path):
            return ObjectInfo(key, path.stat().st_size)

    def exists(self, key: str) -> bool:
        return is_file(self._path(key))

    def list(self, prefix: str = "", after: str | None = None) -> list[ObjectInfo]:
        base = self._path(prefix) if prefix else self._folder
        found = []
        for folder, _, names in os.walk(base, onerror=hidden_folder):
            for name in names:
                path = Path(folder, name)
                key = path.relative_to(self._folder).as_posix()
                if not name.startswith(PART) and (after is None or key > after):
                    with vanishing():
                        found.append(ObjectInfo(key, path.stat().st_size))
        return sorted(found, key=lambda item: item.key)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with local(path):
            path.unlink(missing_ok=True)

    def filesystem(self) -> tuple[fs.FileSystem, str]:
        return fs.LocalFileSystem(), self.root

    def _path(self, key: str) -> Path:
        return self._folder / confined(key)

    def _upload(self, source: Path, key: str) -> None:
        path = self._path(key)
        with local(path), source.open("rb") as stream, appearing(path) as target:
            while chunk := stream.read(1 << 20):
                target.write(chunk)

    def _download(self, key: str, target: BinaryIO) -> None:
        path = self._path(key)
        with local(path), path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                target.write(chunk)


class BucketStore(Store):
    """A prefix of an S3 bucket."""

    def __init__(self, place: str) -> None:
        self._bucket, _, prefix = place.strip("/").partition("/")
        self._prefix = confined(prefix) if prefix else ""
        super().__init__(f"s3://{self._bucket}" + (f"/{prefix}" if prefix else ""))
        with explained(self.root):
            self._client = object_client(self._bucket, self._prefix)

    def put_new(
        self, key: str, data: bytes, metadata: Mapping[str, str] | None = None
    ) -> Created | Exists:
        named = {"attributes": dict(metadata)} if metadata else {}
        try:
            with explained(self.uri(key), taken=True):
                # Multipart uploads ignore the condition on some servers.
                obstore.put(self._client, key, data, mode="create", use_multipart=False, **named)
        except refused.AlreadyExistsError:
            # Servers also answer so when writes only crossed and nothing was stored.
            if not self.exists(key):
                raise Unavailable(f"{self.uri(key)}: a write was refused; repeat it") from None
            return Exists(key)
        return Created(key)

    def put(self, key: str, data: bytes) -> None:
        with explained(self.uri(key)):
            obstore.put(self._client, key, data)

    def get(self, key: str) -> bytes:
        with explained(self.uri(key)):
            return bytes(obstore.get(self._client, key).bytes())

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with explained(self.uri(key)):
            return bytes(obstore.get_range(self._client, key, start=start, length=length))

    def head(self, key: str) -> ObjectInfo:
        with explained(self.uri(key)):
            found = obstore.get(self._client, key, options={"head": True})
            # Content-Type and its like are capitalised; names of metadata never are.
            own = {name: text for name, text in found.attributes.items() if name.islower()}
            return replace(_info(found.meta), metadata=own)

    def exists(self, key: str) -> bool:
        try:
            with explained(self.uri(key)):
                obstore.head(self._client, key)
        except NotFound:
            return False
        return True

    def list(self, prefix: str = "", after: str | None = None) -> list[ObjectInfo]:
        with explained(self.uri(prefix)):
            found = obstore.list(self._client, prefix or None, offset=after).collect()
        return sorted((_info(item) for item in found), key=lambda item: item.key)

    def delete(self, key: str) -> None:
        try:
            with explained(self.uri(key)):
                obstore.delete(self._client, key)
        except NotFound:
            return

    def filesystem(self) -> tuple[fs.FileSystem, str]:
        return scan_filesystem(), self.root.removeprefix("s3://")

    def _upload(self, source: Path, key: str) -> None:
        with explained(self.uri(key)):
            obstore.put(self._client, key, source)

    def _download(self, key: str, target: BinaryIO) -> None:
        with explained(self.uri(key)):
            for chunk in obstore.get(self._client, key).stream():
                target.write(chunk)


def _info(found: Any) -> ObjectInfo:
    return ObjectInfo(found["path"], found["size"], (found["e_tag"] or "").strip('"'))
