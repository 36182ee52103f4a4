"""The FastAPI application and its server process (`hub api`)."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy import Engine

from compute_hub.api import (
    alerts,
    applications,
    charges,
    claim_review,
    claims,
    cluster,
    enterprises,
    estimates,
    health,
    invoices,
    job_output,
    jobs,
    keys,
    ledger,
    meter,
    nodes,
    openapi,
    problems,
    programmes,
    rates,
    secrets,
    templates,
    usage,
    vouchers,
    wallets,
)
from compute_hub.api.call import callers
from compute_hub.api.limits import BodyLimit
from compute_hub.api.submitting import submit_together
from compute_hub.api.together import Together
from compute_hub.identity.duties import DUTIES
from compute_hub.queues import live_queues
from compute_hub.settings import Settings
from compute_hub.settings import settings as settings_of_this_process
from compute_hub.stack.database import application_url
from compute_hub.telemetry.http import Measured
from compute_hub.telemetry.metrics import centre_metrics
from compute_hub.telemetry.serving import serve_metrics
from compute_hub.telemetry.tracing import open_spans
from compute_hub.vault import open_vault
from kernel.collecting import collect_seldom
from kernel.database import open_engine
from kernel.logs import configure_logs
from scheduler.controller.forecasting import Forecaster

_FAREWELL_S = 3
"""What requests still have when the process is told to stop; who follows a log would otherwise keep it for ever."""
_WORKER_START_S = 60
"""A worker that is still importing is not a dead one, however busy the machine."""

_ROUTERS = (
    jobs.router,  # what is asked most comes first: each router before the right one is asked whether it is its own
    enterprises.router,
    keys.router,
    wallets.router,
    programmes.router,
    applications.router,
    vouchers.router,
    estimates.router,
    job_output.router,
    secrets.router,
    templates.router,
    usage.router,
    meter.router,
    charges.router,
    rates.router,
    invoices.router,
    alerts.router,
    claims.router,
    claim_review.router,
    cluster.router,
    nodes.router,
    ledger.router,
    health.router,
)


def create_app(settings: Settings, engine: Engine, closing: Callable[[], None] = lambda: None) -> FastAPI:
    """The whole API on an engine of the application role; `closing` is called when it ends."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.submissions.close()
        app.state.authenticating.close()
        app.state.metrics.close()
        spans.close()
        engine.dispose()
        closing()

    app = FastAPI(
        title="Compute Hub",
        version="1",
        description="Vouchers, jobs, usage and claims of an intelligent computing centre.",
        lifespan=lifespan,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the hub has its own: `Measured`
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.settings = settings
    app.state.engine = engine
    app.state.vault = open_vault(settings.secrets_key)
    app.state.forecaster = Forecaster(live_queues(settings))
    app.state.metrics = centre_metrics(settings, engine)
    app.state.authenticating = Together(partial(callers, engine), "authenticating")
    app.state.submissions = Together(partial(submit_together, engine), "submissions")
    problems.install(app)
    app.add_middleware(BodyLimit)
    spans = open_spans(settings, "api")
    app.add_middleware(Measured, spans=spans)
    for router in _ROUTERS:
        app.include_router(router)
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign] # FastAPI's documented way
    return app


def operations() -> set[str]:
    """The names of everything the API serves under /v1; each has its line in `identity.duties`."""
    return {
        route.name
        for router in _ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and route.path.startswith("/v1")
    }


assert operations() == DUTIES.keys(), operations() ^ DUTIES.keys()  # noqa: S101 - nothing is served without a duty


def worker() -> FastAPI:
    """The application of one worker process, which serves its own metrics beside it."""
    chosen = settings_of_this_process()
    configure_logs("api")
    serving = serve_metrics(chosen, "api")
    app = create_app(chosen, open_engine(application_url(chosen), part="api", pool_size=16), serving.withdraw)
    collect_seldom()
    return app


def run_api(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, with as many worker processes as the settings say."""
    configure_logs("api")
    uvicorn.run(
        "compute_hub.api.app:worker",
        factory=True,
        workers=settings.api_workers,
        timeout_worker_healthcheck=_WORKER_START_S,
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_FAREWELL_S,
    )
