"""Job templates: named beginnings of submissions, an enterprise's own or the operator's for everybody."""

import json
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Path
from fastapi.exceptions import RequestValidationError
from pydantic import Field, StringConstraints, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from compute_hub.api.call import Call, Caller
from compute_hub.api.job_submission import JobSubmission
from compute_hub.api.shapes import Body, Page, View
from scheduler.tables import TemplateRow
from scheduler.templates import EVERYBODY, delete_template, find_template, list_templates, save_template

router = APIRouter(prefix="/v1", tags=["jobs"])

Name = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="The template's name.")]
Fields = Annotated[dict[str, Any], Field(max_length=64)]

FIELDS_BYTES_MAX: Final = 32 * 1024
"""Of one template: all of an owner's are listed at once."""

_LEAST: Final = {"name": "-", "argv": ["-"], "accelerator": "-", "time_limit_s": 1}
"""What every submission must say; a template may leave any of it to whoever uses it."""


class TemplateDefinition(Body):
    """Any fields of a submission; whoever uses the template adds the others and may replace these."""

    description: Annotated[str, StringConstraints(max_length=500)] = ""
    fields: Fields

    @field_validator("fields")
    @classmethod
    def _small(cls, fields: dict[str, Any]) -> dict[str, Any]:
        size = len(json.dumps(fields))
        if size > FIELDS_BYTES_MAX:
            raise PydanticCustomError(
                "template_too_large",
                "has {size} bytes as JSON; at most {most} are allowed",
                {"size": size, "most": FIELDS_BYTES_MAX},
            )
        return fields


class TemplateView(View):
    """A template as it was saved; `shared` ones are the operator's for everybody."""

    name: str
    description: str
    shared: bool
    fields: dict[str, Any]
    saved_by: UUID
    saved_at: datetime


@router.put("/job-templates/{name}", name="save_job_template")
def save(name: Name, body: TemplateDefinition, call: Caller) -> TemplateView:
    """Keep a template, in place of the one of that name; an operator's is for everybody."""
    submission_of({**_LEAST, **body.fields})

    def action(session: Session, at: datetime) -> TemplateView:
        fields, by = dict(body.fields), call.principal.id
        row = save_template(session, _owner(call), name, fields, description=body.description, by=by, at=at)
        return _view(row)

    return call.act(action)


@router.get("/job-templates", name="list_job_templates")
def templates(call: Caller) -> Page[TemplateView]:
    """What you can use: your own and the operator's. Of two with one name your own is meant."""
    return call.read(
        lambda session: Page(items=[_view(row) for row in list_templates(session, call.scope)], next=None)
    )


@router.get("/job-templates/{name}", name="show_job_template")
def template(name: Name, call: Caller) -> TemplateView:
    """One template. `POST /v1/jobs` takes its fields with yours."""
    return call.read(lambda session: _view(find_template(session, name, call.scope)))


@router.delete("/job-templates/{name}", name="delete_job_template")
def delete(name: Name, call: Caller) -> TemplateView:
    """Forget a template of yours; jobs submitted with it are untouched."""
    return call.act(lambda session, _at: _view(delete_template(session, _owner(call), name)))


def submission_of(fields: dict[str, Any]) -> JobSubmission:
    """The submission that these fields make. Raises RequestValidationError, as if they had been a body."""
    try:
        return JobSubmission.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", "fields", *fault["loc"])} for fault in error.errors()]
        raise RequestValidationError(faults) from None


def _owner(call: Call) -> UUID:
    return EVERYBODY if call.scope is None else call.scope


def _view(row: TemplateRow) -> TemplateView:
    return TemplateView(
        name=row.name,
        description=row.description,
        shared=row.owner_id == EVERYBODY,
        fields=row.fields,
        saved_by=row.saved_by,
        saved_at=row.saved_at,
    )
