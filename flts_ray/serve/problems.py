"""Every failure as one JSON shape: `{"error": {"code", "message", "field"}}`.

Design choices: the message of an expected error is meant for the caller and is sent as it is;
an unexpected one is logged with its trace and the caller only learns that it happened; the shape
is made around the routes, so that no framework page ever answers in place of it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
import structlog
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from flts_ray.errors import DataError, FltsError, Unavailable

CLIENT_GONE = 499  # nginx's code for a caller that closed the connection
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 422: "bad_request"}
_log = structlog.get_logger("flts_ray.serve")


class BodyTooLarge(DataError):
    """The request body is larger than `serve.max_body_bytes`: send it in parts."""

    status = 413


def json_response(
    payload: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    body = orjson.dumps(payload)
    return Response(body, status, headers, media_type="application/json")


def problem_response(status: int, code: str, message: str, field: str | None = None) -> Response:
    headers = {"retry-after": "1"} if status == Unavailable.status else None
    payload = {"error": {"code": code, "message": message, "field": field}}
    return json_response(payload, status, headers)


def response_of(error: FltsError) -> Response:
    """The answer to an expected error."""
    default = "unavailable" if error.status == Unavailable.status else "error"
    field = error.field if isinstance(error, DataError) else None
    return problem_response(error.status, _CODES.get(error.status, default), str(error), field)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Unknown path or method."""
    assert isinstance(error, HTTPException)  # it is registered for this type alone
    code = _CODES.get(error.status_code, "error")
    return problem_response(
        error.status_code, code, f"{request.method} {request.url.path[:200]}: {error.detail}"
    )


class ProblemRoute(APIRoute):
    """A route whose failures have the one shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except FltsError as error:
                return response_of(error)
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            except HTTPException:
                raise
            except Exception:  # noqa: BLE001 -- the last line before the caller
                _log.exception("request_failed", path=request.url.path)
                return problem_response(
                    500, "internal", "the server failed on this request; its log has the details"
                )

        return guarded


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as it is known to be."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
    return b"".join(parts)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"body: larger than {max_bytes} bytes; send fewer series or a shorter history", field="body"
    )
