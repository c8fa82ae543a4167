"""The HTTP routes: clip-retrieval's API, the page and its own API, health and metrics."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from importlib import resources as package_files
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from laion_assets import __version__
from laion_assets.search.api_models import (
    KnnRequest,
    MetadataRequest,
    RemovalRequest,
    SearchRequest,
)
from laion_assets.search.errors import RequestRefusedError
from laion_assets.search.middleware import Guard
from laion_assets.search.options import SMALL_BODY, ServeOptions
from laion_assets.search.rate_limit import client_of
from laion_assets.search.report import ROUTE, ReportPolicy, report_of
from laion_assets.search.service import SearchService
from laion_assets.search.sites import (
    JSON,
    LOOPBACK_NAMES,
    any_page_could_send,
    from_another_site,
)

STATIC: Final = Path(str(package_files.files("laion_assets.search"))) / "static"
_SWAGGER: Final = Path(str(package_files.files("fastapi_swagger"))) / "resources"
_SWAGGER_FILES: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")


def make_app(service: SearchService) -> FastAPI:
    """Build the ASGI application; its lifespan is :meth:`SearchService.running`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="LAION Assets search",
        version=__version__,
        description="Search images and captions by text, image, URL or embedding. `/knn-service`,"
        " `/metadata` and `/indices-list` speak clip-retrieval's API: its `ClipClient` works with"
        " them unchanged. `/search` is the page's own query.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    _add_middleware(app, service)
    _add_refusals(app, service)
    _add_clip_retrieval(app, service)
    _add_page(app, service)
    _add_operations(app, service)
    return app


def _add_middleware(app: FastAPI, service: SearchService) -> None:
    options = service.options
    # The last added is the outermost.
    if options.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Content-Type"],
        )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_host_names(options))
    app.add_middleware(Guard, options=options, metrics=service.metrics)
    app.add_middleware(ReportPolicy)


def _host_names(options: ServeOptions) -> list[str]:
    """Host names that the service answers to.

    On loopback these are loopback's names only: otherwise any page on the web could query the
    service by a name of its own, rebound to this machine.
    """
    if options.hosts:
        return list(options.hosts)
    try:
        loopback = ipaddress.ip_address(options.host).is_loopback
    except ValueError:
        loopback = options.host == "localhost"
    return list(LOOPBACK_NAMES) if loopback else ["*"]


def _add_refusals(app: FastAPI, service: SearchService) -> None:
    @app.exception_handler(RequestRefusedError)
    async def refused(_: Request, error: RequestRefusedError) -> Response:
        service.metrics.refused(error.reason)
        after = error.retry_after_s
        return JSONResponse(
            {"reason": error.reason, "detail": error.detail},
            error.status,
            {"Retry-After": str(after)} if after else None,
        )


async def _read(request: Request, model: type[R], limit: int, options: ServeOptions) -> R:
    """Read the JSON body.

    Raises :class:`RequestRefusedError` for a body that is too large, too slow or invalid, and for
    what a page of another site asks or could ask.
    """
    if from_another_site(request.headers, options.origins):
        raise RequestRefusedError(403, "other_site", "this site's pages may not ask here")
    if any_page_could_send(request.headers, options.origins):
        raise RequestRefusedError(415, "media_type", f"send it as {JSON}")
    too_large = RequestRefusedError(413, "too_large", f"the request is larger than {limit:,} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(options.body_timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError as error:
        raise RequestRefusedError(408, "slow", "the request did not arrive in time") from error
    except ClientDisconnect as error:
        raise RequestRefusedError(400, "gone", "the client disconnected") from error
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as error:
        problems = "; ".join(
            ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))
            for problem in error.errors(include_url=False, include_input=False)[:5]
        )
        raise RequestRefusedError(422, "invalid", problems) from error


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do work for a request whose body was read; cancel it when the client leaves.

    Raises what the work raises, and :class:`RequestRefusedError` if the client has left.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestRefusedError(400, "gone", "the client disconnected")
        return await working
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _client(request: Request) -> str:
    return client_of(request.client.host if request.client else "")


def _json(value: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers=headers)


def _body(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """Describe a body in the OpenAPI document; :func:`_read` reads it."""
    content = {"schema": model.model_json_schema(), "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _add_clip_retrieval(app: FastAPI, service: SearchService) -> None:
    options = service.options

    @app.post(
        "/knn-service",
        tags=["clip-retrieval"],
        openapi_extra=_body(KnnRequest, {"text": "a red apple", "num_images": 10}),
    )
    async def knn_service(request: Request) -> Response:
        """Find the samples nearest to a text, an image, an image's URL or an embedding.

        Results come best first. `similarity` is the cosine with the query. `id` is for `/metadata`
        and is valid until a newer index replaces this one. `X-Ignored-Parameters` names the
        parameters that ask for something that this service does not have.
        """
        asked = await _read(request, KnnRequest, options.largest_body, options)
        results = await _unless_gone(request, service.knn(asked, _client(request)))
        ignored = ", ".join(service.heads.ignored(asked, service.live.current.summary))
        return _json(results, {"X-Ignored-Parameters": ignored} if ignored else None)

    @app.post(
        "/metadata",
        tags=["clip-retrieval"],
        openapi_extra=_body(MetadataRequest, {"ids": [1]}),
    )
    async def metadata(request: Request) -> Response:
        """Metadata of ids from `/knn-service`; ids of an index that was replaced are left out."""
        asked = await _read(request, MetadataRequest, SMALL_BODY, options)
        return _json(await _unless_gone(request, service.metadata(asked)))

    @app.get("/indices-list", tags=["clip-retrieval"])
    async def indices_list() -> list[str]:
        """Valid values of `indice_name`."""
        return [service.name]


def _add_page(app: FastAPI, service: SearchService) -> None:
    options = service.options

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    def report() -> Path | None:
        return report_of(service.live.index_dir, options)

    @app.get(ROUTE, tags=["page"], response_class=Response)
    async def dataset_report() -> Response:
        """The dataset report, where the options let it be served."""
        found = report()
        if found is None:
            raise RequestRefusedError(404, "no_file", "there is no report to show")
        return FileResponse(found, headers={"Cache-Control": "no-cache"})

    @app.get("/about", tags=["page"])
    async def about() -> dict[str, Any]:
        """Name and size of the index, and what this service can do."""
        return {**(await service.about()), "report": report() is not None}

    @app.get("/generated", tags=["page"], response_class=Response)
    async def generated() -> Response:
        """Samples generated by a model trained on the dataset, if the lake has any."""
        report = await service.generated()
        if report is None:
            raise RequestRefusedError(404, "no_file", "there are no generated samples to show")
        return FileResponse(report, headers={"Cache-Control": "no-cache"})

    @app.post(
        "/search",
        tags=["page"],
        openapi_extra=_body(SearchRequest, {"text": "a cat -dog", "limit": 10}),
    )
    async def search(request: Request) -> Response:
        """Combined query with filters, page by page: the page's own search."""
        asked = await _read(request, SearchRequest, options.largest_body, options)
        return _json(await _unless_gone(request, service.search(asked, _client(request))))

    @app.get("/thumbnails/{sample}", tags=["page"], response_class=Response)
    async def thumbnail(sample: str) -> Response:
        """Stored image of a sample in the dataset."""
        body, media_type = await service.thumbnail(sample)
        return Response(
            body, media_type=media_type, headers={"Cache-Control": "private, max-age=3600"}
        )

    @app.post(
        "/removal-requests",
        tags=["page"],
        status_code=202,
        openapi_extra=_body(
            RemovalRequest, {"sample": "CC-MAIN-2000-05.00.000000001.0123456789abcdef"}
        ),
    )
    async def removal_requests(request: Request) -> Response:
        """Request the removal of a sample. A person reviews the request."""
        asked = await _read(request, RemovalRequest, SMALL_BODY, options)
        await service.request_removal(asked)
        return JSONResponse({"status": "in the queue for review"}, 202)

    class Static(StaticFiles):
        async def get_response(self, path: str, scope: Any) -> Response:
            response = await super().get_response(path, scope)
            response.headers["Cache-Control"] = "no-cache"
            return response

    app.mount("/static", Static(directory=STATIC), name="static")


def _add_operations(app: FastAPI, service: SearchService) -> None:
    @app.get("/healthz", tags=["operations"])
    async def healthz() -> dict[str, Any]:
        """`ok`, or `degraded` while the CLIP model or the newest index is not available."""
        return service.health()

    @app.get("/metrics", tags=["operations"], response_class=Response)
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return FileResponse(STATIC / "docs.html")

    @app.get("/docs/{name}", include_in_schema=False)
    async def swagger(name: str) -> Response:
        if name not in _SWAGGER_FILES:
            raise RequestRefusedError(404, "no_file", "no such file")
        return FileResponse(_SWAGGER / name, media_type=_SWAGGER_FILES[name])
