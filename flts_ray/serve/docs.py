"""The API page, without anything from outside.

Design choices: scripts and styles come from an installed package, because the page must work
where no content network is reachable; addresses in it are relative, so that it works under any
prefix; the request models are added to the schema by hand, because their bodies are parsed from
bytes and the framework never sees them.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.staticfiles import StaticFiles

from flts_ray.serve.schemas import ForecastRequest, PredictRequest, Request

_REFERENCE = "#/components/schemas/{model}"


def add_docs(app: FastAPI) -> None:
    """Serve `/docs` and its assets, and complete `/openapi.json`."""
    assets = StaticFiles(packages=[("fastapi_swagger", "resources")])
    app.mount("/docs/assets", assets, name="docs_assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
            swagger_ui_parameters={"validatorUrl": None},
        )

    app.openapi = lambda: _schema(app)  # type: ignore[method-assign]


def body_of(model: type[Request]) -> dict[str, Any]:
    """`openapi_extra` of a route that parses its body as `model`."""
    reference = {"$ref": _REFERENCE.format(model=model.__name__)}
    content = {"application/json": {"schema": reference}}
    return {"requestBody": {"required": True, "content": content}}


def _schema(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        _, models = models_json_schema(
            [(ForecastRequest, "validation"), (PredictRequest, "validation")],
            ref_template=_REFERENCE,
        )
        schema["components"]["schemas"].update(models["$defs"])
        app.openapi_schema = schema
    return app.openapi_schema
