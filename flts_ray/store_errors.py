"""What goes wrong with a store, in words that say what to do.

Design choices: a key that is not there is one error, everything that may pass another; an answer
that never came is among the latter, since only the caller knows whether to repeat.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obstore import exceptions as refused

from flts_ray.errors import DataError, Unavailable
from flts_ray.s3_clients import endpoint

_ACCESS = (refused.PermissionDeniedError, refused.UnauthenticatedError)


class NotFound(DataError):
    """Nothing is stored under this key."""

    status = 404


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Errors of a bucket as NotFound or Unavailable; a key that is taken passes as it is."""
    try:
        yield
    except refused.AlreadyExistsError:
        raise
    except (FileNotFoundError, refused.NotFoundError):
        raise NotFound(f"{place}: nothing is stored there; check key and bucket") from None
    except (PermissionError, *_ACCESS) as error:
        raise Unavailable(
            f"{place}: access refused; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: "
            f"{_first_line(error)}"
        ) from None
    except refused.BaseError as error:
        raise Unavailable(
            f"{place}: the object store at {endpoint() or 'AWS'} cannot be used; check "
            f"AWS_ENDPOINT_URL, the bucket and the keys: {_first_line(error)}"
        ) from None


@contextmanager
def local(path: Path) -> Iterator[None]:
    """Errors of a folder as NotFound or Unavailable."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"{path}: nothing is stored there; check the address") from None
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}; check the folder and its rights") from None


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
