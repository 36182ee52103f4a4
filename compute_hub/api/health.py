"""Health of this process, and what Prometheus reads; open to whoever can reach the port."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from compute_hub.api.problems import database_away
from compute_hub.telemetry.metrics import MEDIA_TYPE
from kernel.database import transaction

router = APIRouter(tags=["health"], include_in_schema=False)


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """The centre's state for Prometheus; what this process counts of itself is on its own port."""
    return Response(request.app.state.metrics.scrape(), media_type=MEDIA_TYPE)


@router.get("/healthz")
def healthz() -> JSONResponse:
    """This process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz")
def readyz(request: Request) -> Response:
    """This process can reach its database."""
    try:
        with transaction(request.app.state.engine) as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return database_away()
    return JSONResponse({"status": "ready"})
