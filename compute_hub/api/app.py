"""The FastAPI application and its server process (`hub api`)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine

from compute_hub.api import claims, cluster, enterprises, jobs, problems, programmes, usage
from compute_hub.settings import Settings
from compute_hub.stack.database import application_url
from compute_hub.telemetry.metrics import centre_registry
from compute_hub.workers.logs import configure_logs
from kernel.database import open_engine


def create_app(settings: Settings, engine: Engine) -> FastAPI:
    """The whole API on an engine of the application role."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.dispose()

    app = FastAPI(
        title="Compute Hub",
        version="1",
        description="Vouchers, jobs, usage and claims of an intelligent computing centre.",
        lifespan=lifespan,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.engine = engine
    app.state.metrics = centre_registry(engine)
    problems.install(app)
    for module in (enterprises, programmes, jobs, usage, claims, cluster):
        app.include_router(module.router)
    return app


def run_api(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    configure_logs("api")
    app = create_app(settings, open_engine(application_url(settings), pool_size=16))
    uvicorn.run(
        app,
        host=settings.api_host,
        port=settings.api_port,
        log_level="warning",
        access_log=False,
        server_header=False,
    )
