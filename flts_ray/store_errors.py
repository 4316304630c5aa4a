"""What goes wrong with a store, in words that say what to do.

Design choices: a key that is not there is one error, everything that may pass another; an answer
that never came is among the latter, since only the caller knows whether to repeat; an answer that
says no to this request is told apart, since it may concern one object or the whole store.
"""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obstore import exceptions as refused

from flts_ray.errors import DataError, Unavailable
from flts_ray.s3_clients import endpoint

_ACCESS = (refused.PermissionDeniedError, refused.UnauthenticatedError)
# Answers about the request itself: malformed, not allowed, too long, withheld.
_REFUSED = re.compile(r"status code: (400|403|405|410|411|414|451)\b")
_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_DENIED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


class NotFound(DataError):
    """Nothing is stored under this key."""

    status = 404


class Denied(Unavailable):
    """The store answered no to this request: for this key, or for all."""


@contextmanager
def explained(place: str, *, taken: bool = False) -> Iterator[None]:
    """Errors of a bucket as NotFound, Denied or Unavailable.

    `taken`: the answer that a key is taken passes as it is.
    """
    try:
        yield
    except refused.AlreadyExistsError as error:
        if taken:
            raise
        raise Unavailable(f"{place}: a conflict; repeat it: {_first_line(error)}") from None
    except (FileNotFoundError, refused.NotFoundError):
        raise NotFound(f"{place}: nothing is stored there; check key and bucket") from None
    except (PermissionError, *_ACCESS) as error:
        raise Denied(
            f"{place}: access refused; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: "
            f"{_first_line(error)}"
        ) from None
    except refused.BaseError as error:
        if _REFUSED.search(str(error)):
            raise Denied(f"{place}: the object store refused: {_first_line(error)}") from None
        raise Unavailable(
            f"{place}: the object store at {endpoint() or 'AWS'} cannot be used; check "
            "AWS_ENDPOINT_URL, the bucket and the keys, or run `flts up` for a server on this "
            f"machine: {_first_line(error)}"
        ) from None


@contextmanager
def local(path: Path) -> Iterator[None]:
    """Errors of a folder as NotFound, Denied or Unavailable."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"{path}: nothing is stored there; check the address") from None
    except OSError as error:
        kind = Denied if error.errno in _DENIED else Unavailable
        raise kind(f"{path}: {error.strerror}; check the folder and its rights") from None


def is_file(path: Path) -> bool:
    """Whether a file is there. Raises Denied or Unavailable where that cannot be seen."""
    with local(path):
        try:
            return stat.S_ISREG(path.stat().st_mode)
        except OSError as error:
            if error.errno in _NOTHING:
                return False
            raise


def hidden_folder(error: OSError) -> None:
    """For `os.walk`: a folder that vanished is empty, one that cannot be read is an error."""
    if not isinstance(error, FileNotFoundError):
        raise Unavailable(f"{error.filename}: {error.strerror}; check the folder and its rights")


@contextmanager
def vanishing() -> Iterator[None]:
    """A file that is deleted while the folder is listed is simply not listed."""
    try:
        yield
    except FileNotFoundError:
        return


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
