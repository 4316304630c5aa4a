"""Which files the configuration means.

Design choices: a path is a file, a folder (searched at any depth) or a glob, on this machine or in
an S3 bucket, and means the same on both; files whose names start with a dot or an underscore are
other programs' markers and are skipped; a file's fingerprint changes with its content and with
nothing else that this machine can see cheaply (the SHA-256 of a local file, entity tag and size in
a bucket), so that moved or touched files make no new prepared set.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from flts_ray.config import DataConfig
from flts_ray.errors import DataError
from flts_ray.store import ObjectInfo, Store

Format = Literal["csv", "parquet"]

_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
    ".parquet": "parquet",
}
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Input:
    """One file. `size` in bytes; `series` names its series where no column does ("": no need).

    labels: columns that hold text somewhere in the set the file belongs to; None: unknown.
    lacks: covariates that only other files of the set have; they are missing in all its rows.
    sha256: of the content, where somebody has said what it must be; None: not known.
    """

    uri: str
    name: str
    size: int
    fingerprint: str
    format: Format
    is_test: bool
    series: str = ""
    labels: frozenset[str] | None = None
    lacks: frozenset[str] = frozenset()
    sha256: str | None = None


def find_inputs(data: DataConfig) -> list[Input]:
    """Every file of `data.path` and `data.test_path`, once each, sorted by address.

    A file that both match is a test file. Raises DataError for a path that matches nothing, a
    file of unknown format, or a name that `id_from_path` does not match.
    """
    found = {item.uri: item for path in _paths(data.path) for item in _matches(path, data, False)}
    for path in _paths(data.test_path):
        found.update({item.uri: item for item in _matches(path, data, True)})
    return _named([found[uri] for uri in sorted(found)], data)


def file_series(item: Input, data: DataConfig) -> str:
    """Series name that a file's name gives: the group of `id_from_path`, else its stem.

    The stem of a test file goes without `_test` or `-test`, so that it continues its series.
    Raises DataError if `id_from_path` does not match.
    """
    if data.id_from_path is not None:
        match = re.search(data.id_from_path, item.name)
        if match is None or not match.group(1):
            raise DataError(
                f"{item.uri}: data.id_from_path {data.id_from_path!r} finds no series in the file "
                f"name {item.name!r}; correct the expression or exclude the file",
                field="data.id_from_path",
            )
        return match.group(1)
    stem = _stem(item.name)
    return re.sub(r"(?<=.)[_-]test$", "", stem) if item.is_test else stem


def _named(items: Sequence[Input], data: DataConfig) -> list[Input]:
    if data.id is not None:
        return list(items)
    named = [replace(item, series=file_series(item, data)) for item in items]
    one_group = len({item.series for item in named}) == 1
    if data.layout == "wide" and data.id_from_path is None and one_group:
        return list(items)
    return named


def _paths(paths: str | Sequence[str] | None) -> Sequence[str]:
    return () if paths is None else (paths,) if isinstance(paths, str) else paths


def _matches(path: str, data: DataConfig, is_test: bool) -> Iterator[Input]:
    in_bucket = path.startswith("s3://")
    files = _bucket_files(path) if in_bucket else _local_files(path.removeprefix("file://"))
    named = [(uri, info) for uri, info, explicit in files if explicit or _wanted(uri, info, data)]
    if not named:
        raise DataError(_nothing(path, in_bucket), field="data.path")
    for uri, info in named:
        fingerprint = f"{info.etag}-{info.size}" if in_bucket else _sha256(uri)
        name = PurePosixPath(uri).name if in_bucket else Path(uri).name
        yield Input(uri, name, info.size, fingerprint, _format(uri, name, data), is_test)


def _local_files(path: str) -> Iterator[tuple[str, ObjectInfo, bool]]:
    """Address, key below what was named, and whether the file itself was named."""
    place = Path(os.path.abspath(os.path.expanduser(path)))
    if place.is_file():
        yield str(place), ObjectInfo(place.name, place.stat().st_size), True
    elif place.is_dir():
        for info in Store.open(str(place)).list():
            yield str(place / info.key), info, False
    elif _WILD.search(path):
        base = _fixed_part(str(place))
        for match in glob.iglob(str(place), recursive=True):
            if os.path.isfile(match):
                key = Path(match).relative_to(base).as_posix()
                yield match, ObjectInfo(key, os.path.getsize(match)), False


def _bucket_files(path: str) -> Iterator[tuple[str, ObjectInfo, bool]]:
    bucket, _, key = path.removeprefix("s3://").partition("/")
    store = Store.open(f"s3://{bucket}")
    if not _WILD.search(key):
        parent = key.rpartition("/")[0]
        named = [info for info in store.list(parent) if info.key == key]
        if named:
            yield f"s3://{bucket}/{key}", named[0], True
            return
    base = _fixed_part(key) if _WILD.search(key) else key.rstrip("/")
    pattern = _glob_regex(key) if _WILD.search(key) else re.compile(".*")
    for info in store.list(base):
        if pattern.fullmatch(info.key):
            inner = replace(info, key=info.key.removeprefix(base).lstrip("/"))
            yield f"s3://{bucket}/{info.key}", inner, False


def _fixed_part(path: str) -> str:
    """The folder before the first wildcard."""
    match = _WILD.search(path)
    return path[: match.start() if match else None].rpartition("/")[0]


def _glob_regex(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay within a folder, `**/` means any folders, as in a shell."""
    tokens = re.findall(r"\*\*/|\*+|\?|\[!?[^\]]+\]|.", pattern)
    meaning = {"**/": r"(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def regex(token: str) -> str:
        if token in meaning:
            return meaning[token]
        if len(token) > 1 and token[0] == "[":
            return token.replace("[!", "[^", 1)
        return re.escape(token)

    return re.compile("".join(map(regex, tokens)))


def _wanted(uri: str, info: ObjectInfo, data: DataConfig) -> bool:
    """Whether a file that was found, not named, is input: known ending, no marker on its way."""
    if any(part.startswith((".", "_")) for part in PurePosixPath(info.key).parts):
        return False
    known = _FORMATS.get(_ending(uri))
    return known is not None and data.format in ("auto", known)


def _ending(name: str) -> str:
    lowered = name.lower()
    return next((e for e in sorted(_FORMATS, key=len, reverse=True) if lowered.endswith(e)), "")


def _stem(name: str) -> str:
    ending = _ending(name)
    return name[: -len(ending)] if ending else PurePosixPath(name).stem


def _format(uri: str, name: str, data: DataConfig) -> Format:
    if data.format != "auto":
        return data.format
    known = _FORMATS.get(_ending(name))
    if known is None:
        raise DataError(
            f"{uri}: the format of this file cannot be told from its name; set data.format to csv "
            f"or parquet, or use an ending of: {', '.join(_FORMATS)}",
            field="data.format",
        )
    return known


def _sha256(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path}: the file cannot be read: {error.strerror}; check its rights",
            field="data.path",
        ) from None


def _nothing(path: str, in_bucket: bool) -> str:
    where = "" if in_bucket else f" (working directory {os.getcwd()})"
    wild = "" if not in_bucket else "; check AWS_ENDPOINT_URL if the bucket lies elsewhere"
    return (
        f"data path {path!r} matches no file{where}; give a file, a folder with files ending in "
        f"{', '.join(_FORMATS)}, or a glob such as data/**/*.csv{wild}"
    )
