"""The service: its routes, and the way of a request from upload to answer."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving import pictures
from serving.answers import Answers, ModelCard, Problem, State
from serving.batching import Batcher
from serving.loading import LoadedModel, ModelReloader, Prediction
from serving.metrics import Metrics
from serving.middleware import POLICY, ObservabilityMiddleware
from serving.refusals import Refusal
from serving.settings import Settings
from serving.uploads import Uploads

PAGE = Path(__file__).parent / "page"
CLIENT_GONE = 499  # nginx's; it is logged and counted, nobody receives it
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            }
        },
    }
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "No file, or a form that cannot be read"},
    408: {"model": Problem, "description": "The files arrive too slowly"},
    413: {"model": Problem, "description": "Too many bytes, pixels or files"},
    415: {"model": Problem, "description": "Not a form, or not a JPEG, PNG or WebP image"},
    422: {"model": Problem, "description": "A damaged image, or top_k out of range"},
    503: {"model": Problem, "description": "Busy, and Retry-After says when to come again; or no answer in time"},
}
T = TypeVar("T")
log = logging.getLogger("serving")


class Service:
    """What the routes share."""

    def __init__(self, settings: Settings) -> None:
        """Load the model; raises PetalsError, in one line, where it cannot serve."""
        self.settings = settings
        self.metrics = Metrics()
        self.metrics.queue_limit.set(settings.queue)
        self.reloader = ModelReloader(settings.model, settings.window, self.on_reload)
        self.metrics.set_model(settings.version, settings.revision, self.model.sha256)
        self.uploads = Uploads(settings.max_bytes, settings.max_files, settings.upload_seconds)
        self.batcher = Batcher(
            settings.threads,
            settings.batch,
            settings.wait_ms / 1000,
            settings.queue,
            lambda: bool(self.uploads.arriving),
            self.metrics,
        )
        self.large = ThreadPoolExecutor(1, "large")  # one at a time, so that memory stays bounded

    @property
    def model(self) -> LoadedModel:
        return self.reloader.current

    @property
    def version(self) -> str | None:
        """As given at the start; None once another file has been loaded, for which it was not given."""
        return None if self.reloader.replaced else self.settings.version

    @property
    def revision(self) -> str | None:
        return None if self.reloader.replaced else self.settings.revision

    def on_reload(self, loaded: bool) -> None:
        self.metrics.loads.labels("loaded" if loaded else "refused").inc()
        self.metrics.set_model(self.version, self.revision, self.model.sha256)

    async def predict(self, request: Request, top_k: int) -> dict[str, Any]:
        """Read an upload and answer it; raises Refusal, and ClientDisconnect when the client has gone."""
        seconds = self.settings.answer_seconds
        async with self.uploads.files(request) as data:
            request.state.log_fields = {"images": len(data)}
            model, version = self.model, self.version
            try:
                with self.metrics.answer_seconds.time():
                    async with while_connected(request), asyncio.timeout(seconds):
                        predictions = await self.predict_images(model, data)
            except TimeoutError:
                raise Refusal(503, "late", f"no answer within {seconds:g} seconds; try again later") from None
        model.window.add(predictions[:1])  # the limits are for independent images, which those of one form are not
        images = []
        for row, _ in predictions:
            likeliest = np.argsort(-row, kind="stable")[:top_k].tolist()
            self.metrics.predictions.labels(model.classes[likeliest[0]]).inc()
            guesses = [{"name": model.classes[at], "probability": round(float(row[at]), 6)} for at in likeliest]
            images.append({"guesses": guesses})
        return {"version": version, "sha256": model.sha256, "images": images}

    async def predict_images(self, model: LoadedModel, data: list[bytes]) -> list[Prediction]:
        """Predict the images of a request; if one is refused, the request is."""
        with self.batcher.admit(len(data)):
            if len(data) == 1:
                return [await self.predict_image(model, data[0], "file 1")]
            await in_thread(partial(pictures.check_together, data, self.settings.max_pixels))
            tasks = [
                asyncio.create_task(self.predict_image(model, each, f"file {number}"))
                for number, each in enumerate(data, 1)
            ]
            try:
                return await asyncio.gather(*tasks)
            finally:
                while tasks:
                    tasks.pop().cancel()

    async def predict_image(self, model: LoadedModel, data: bytes, where: str) -> Prediction:
        limit = self.settings.max_pixels
        try:
            return await self.batcher.submit(model, lambda size: pictures.read(data, where, size, limit))
        except pictures.Large:
            pass
        decode = partial(pictures.read, data, where, model.image_size, limit, large=True)
        image = await in_thread(decode, self.large)
        return await self.batcher.submit(model, lambda _: image)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Watch the model file while the service runs; uvicorn ends this once all requests are answered."""
        loop = asyncio.get_running_loop()
        with suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):  # no SIGHUP, or not its thread
            loop.add_signal_handler(signal.SIGHUP, self.reloader.reload_requested.set)
        about = {"version": self.version, "sha256": self.model.sha256, "classes": len(self.model.classes)}
        log.info("serving", extra={"fields": about})
        watch = asyncio.create_task(self.reloader.watch())
        try:
            yield
        finally:
            watch.cancel()
            self.batcher.close()
            self.large.shutdown(wait=False, cancel_futures=True)


async def in_thread(job: Callable[[], T], executor: ThreadPoolExecutor | None = None) -> T:
    """Run a job in a thread; if the caller is cancelled before its turn comes, the job is let go of at once.

    By itself the executor would keep it, and with it the bytes of an image, until then.
    """
    jobs = [job]
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, lambda: jobs.pop()())
    finally:
        jobs.clear()


@asynccontextmanager
async def while_connected(request: Request) -> AsyncIterator[None]:
    """Break the block off with ClientDisconnect when the client goes away; the request's body must have been read."""
    task = asyncio.current_task()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not watching.done():
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        watching.cancel()


def create_app(settings: Settings) -> FastAPI:
    """Make the service; raises PetalsError where the model cannot serve."""
    service = Service(settings)
    app = FastAPI(
        title="petals",
        summary="Image classification.",
        version=settings.version or "unreleased",
        docs_url=None,
        redoc_url=None,
        lifespan=service.lifespan,
        redirect_slashes=False,  # it would name the host that the client says it is
    )
    app.state.service = service
    app.add_middleware(ObservabilityMiddleware, metrics=service.metrics)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.mount("/docs/ui", StaticFiles(directory=files("fastapi_offline") / "static"), name="docs")

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> Response:
        service.metrics.refused.labels(refusal.reason).inc()
        request.state.log_fields = {**getattr(request.state, "log_fields", {}), "refused": refusal.reason}
        return JSONResponse({"detail": refusal.detail}, refusal.status, refusal.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return await refuse(request, Refusal(422, "parameter", f"{first['loc'][-1]}: {first['msg']}"))

    @app.exception_handler(ClientDisconnect)
    async def client_gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_GONE)

    @app.post("/predict", tags=["model"], response_model=Answers, responses=PROBLEMS, openapi_extra=FORM)
    async def predict(
        request: Request, top_k: Annotated[int, Query(ge=1, le=1000, description="guesses an image, at most")] = 5
    ) -> Response:
        """What is in one or several photographs (JPEG, PNG or WebP), sent as files of a form under any name."""
        return JSONResponse(await service.predict(request, top_k))

    def get(path: str, **options: Any) -> Callable[[Callable], Callable]:
        """A route for GET, and for HEAD, which has to go with it (RFC 9110, 9.1).

        It is added twice: the first answers, and the second is there for OpenAPI, to describe GET alone.
        """

        def add(endpoint: Callable) -> Callable:
            app.add_api_route(path, endpoint, methods=["GET", "HEAD"], **options | {"include_in_schema": False})
            app.add_api_route(path, endpoint, methods=["GET"], **options)
            return endpoint

        return add

    @get("/model", tags=["model"])
    async def model() -> ModelCard:
        """The model that answers, and how well it did on validation."""
        return service.model.card(settings.name, service.version, service.revision)

    @get("/healthz", tags=["operation"])
    async def healthz() -> State:
        """Whether the process is alive."""
        return State(status="ok")

    @get("/readyz", tags=["operation"], responses={503: {"model": Problem}})
    async def readyz() -> State:
        """Whether it can take requests."""
        if service.batcher.admitted >= settings.queue:
            raise HTTPException(503, "the queue is full", {"Retry-After": "1"})  # nobody is turned away by this
        return State(status="ready")

    @get("/metrics", tags=["operation"], response_class=Response)
    def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(service.metrics.text(service.model.window.compare()), media_type="text/plain; version=0.0.4")

    @get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        # Swagger UI writes style attributes and draws with images inside its style sheet.
        policy = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'").replace("blob:", "data:")
        return FileResponse(PAGE / "docs.html", headers={"content-security-policy": policy})

    return app
