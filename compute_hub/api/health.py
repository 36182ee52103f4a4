"""Health of this process, and what Prometheus reads; open to whoever can reach the port."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from compute_hub.api.problems import problem
from compute_hub.telemetry.metrics import render
from kernel.database import transaction

router = APIRouter(tags=["health"], include_in_schema=False)


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Prometheus exposition of what this process can see of the centre."""
    body, media_type = render(request.app.state.metrics)
    return Response(body, media_type=media_type)


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
        return problem(503, "database_unreachable", "The database does not answer; try again shortly.")
    return JSONResponse({"status": "ready"})
