"""Every failure as one JSON shape: `{"error": {"code", "message", "field"}}`.

Design choices: the message of an expected error is meant for the caller and is sent as it is; an
unexpected one is logged with its trace and the caller only learns that it happened and under
which request id.
"""

from __future__ import annotations

import math

import structlog

from flts_ray.errors import DataError, Expired, FltsError, Overloaded, Unavailable
from flts_ray.serve.asgi import Answer, Call, Header, json_answer

CODES = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    422: "bad_request",
    429: "overloaded",
    503: "unavailable",
    504: "expired",
}
INTERNAL = "the server failed on this request; its log tells why under request id "
_log = structlog.get_logger("flts_ray.serve")


class NotFound(FltsError):
    """Nothing is served at this path."""

    status = 404


class NotAllowed(FltsError):
    """The path has no such method; `methods` it has."""

    status = 405

    def __init__(self, message: str, methods: tuple[str, ...]) -> None:
        self.methods = methods
        super().__init__(message)


class UnsupportedMedia(FltsError):
    """The body is of a kind that this route does not read."""

    status = 415


def code_of(error: FltsError) -> str:
    """The word that stands for this kind of failure."""
    return CODES.get(error.status, "error")


def field_of(error: FltsError) -> str | None:
    """The field of the request that a refusal is about."""
    return error.field if isinstance(error, DataError) else None


def answer_to(error: FltsError) -> Answer:
    """The answer to an expected error."""
    return problem(error.status, code_of(error), str(error), field_of(error), headers_of(error))


def headers_of(error: FltsError) -> tuple[Header, ...]:
    """When to come again, or how to be let in."""
    if isinstance(error, Overloaded):
        wait = max(1, math.ceil(min(error.retry_after_s, 3600)))
        return ((b"retry-after", b"%d" % wait),)
    if isinstance(error, Unavailable | Expired):
        return ((b"retry-after", b"1"),)
    if isinstance(error, NotAllowed):
        return ((b"allow", ", ".join(error.methods).encode()),)
    if error.status == 401:
        return ((b"www-authenticate", b'Bearer realm="flts"'),)
    return ()


def problem(
    status: int, code: str, message: str, field: str | None, headers: tuple[Header, ...] = ()
) -> Answer:
    return json_answer(
        {"error": {"code": code, "message": message, "field": field}}, status, headers
    )


def log_failure(call: Call) -> str:
    """Log the exception in hand; returns what the caller may know."""
    request_id = call.id.decode()
    _log.exception("request_failed", path=call.path[:200], request_id=request_id)
    return INTERNAL + request_id
