"""How paths name a job: by its id, or by the id of its array, a point and its index."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import Path
from pydantic import BeforeValidator

from scheduler.jobs import array_job_id


def job_id_of(text: Any) -> Any:  # noqa: ANN401 - whatever the path holds; what is no name is refused after this
    """The id of an array's job that is named by `array.index`; anything else is left as it is."""
    array, point, index = str(text).partition(".")
    if not point or not (index.isascii() and index.isdigit()):
        return text
    try:
        return array_job_id(UUID(array), int(index[:9]))
    except ValueError:
        return text


JobId = Annotated[
    UUID, BeforeValidator(job_id_of), Path(description="The job's id, or `array.index` of an array's job.")
]
ArrayId = Annotated[UUID, Path(description="The array's id.")]
