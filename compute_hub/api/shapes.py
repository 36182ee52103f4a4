"""What requests and answers are made of: strict bodies without anything that could not be stored, and plain views."""

from datetime import datetime
from typing import Annotated, Any, Final, Generic, TypeVar
from uuid import UUID

from fastapi import Path, Query, Response
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kernel.money import MICROS_MAX

_DEPTH_MAX: Final = 24
_YEARS: Final = range(2000, 2201)
PARTY_PATTERN: Final = r"^[0-9A-Za-z][0-9A-Za-z:._-]{0,63}$"
SLUG_PATTERN: Final = r"^[a-z][a-z0-9-]{1,62}$"


class Body(BaseModel):
    """A request body: unknown fields are refused, values are not coerced, text and numbers can be stored."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, value: Any) -> Any:  # noqa: ANN401 - any JSON value
        check_storable(value)
        return value


class View(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True)


Item = TypeVar("Item", bound=View)


class Page(View, Generic[Item]):
    """A part of a list; `next`, given back as the parameter `after`, continues it, and null ends it."""

    items: list[Item]
    next: str | None


def page_of(items: list[Item], limit: int, cursor: object) -> Page[Item]:
    """A page that was asked for with a limit; `cursor` names its last item."""
    return Page(items=items, next=str(cursor) if len(items) == limit else None)


def written(answer: View, status: int = 200) -> Response:
    """An answer as it is sent, written where it was made.

    For what is asked with every job: FastAPI would check a model that has just been made once more, in another thread.
    """
    return sent(answer.model_dump_json(), status)


def sent(json: str, status: int = 200) -> Response:
    """An answer that is written already."""
    return Response(json, status_code=status, media_type="application/json")


def check_storable(value: object) -> None:
    """Refuse what PostgreSQL's text and JSON cannot keep: NUL, halves of surrogate pairs, NaN, huge or deep values."""
    waiting = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        if isinstance(part, str) and not _is_text(part):
            raise PydanticCustomError(
                "text_not_storable", "text may not hold NUL or half of a surrogate pair; remove the character"
            )
        if isinstance(part, int | float) and not -MICROS_MAX <= part <= MICROS_MAX:
            raise PydanticCustomError("number_out_of_range", "a number must lie within ±9007199254740992")
        if isinstance(part, dict | list) and depth == _DEPTH_MAX:
            raise PydanticCustomError("nested_too_deeply", "values may be nested at most 24 deep")
        if isinstance(part, dict):
            waiting += [(inner, depth + 1) for pair in part.items() for inner in pair]
        elif isinstance(part, list):
            waiting += [(inner, depth + 1) for inner in part]


def _is_text(text: str) -> bool:
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _within_years(at: datetime) -> datetime:
    if at.year not in _YEARS:
        raise PydanticCustomError("time_out_of_range", "the year must lie between 2000 and 2200")
    return at


Text = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]
Reason = Annotated[str, StringConstraints(max_length=2000)]
NeededReason = Annotated[str, StringConstraints(min_length=1, max_length=2000, strip_whitespace=True)]
Yuan = Annotated[
    str,
    StringConstraints(max_length=24),
    Field(json_schema_extra={"pattern": r"^(0|[1-9]\d{0,9})(\.\d{1,6})?$", "examples": ["1250.00"]}),
]
CardMs = Annotated[int, Field(ge=1, le=MICROS_MAX)]
Id = Annotated[UUID, Field(strict=False)]
Instant = Annotated[AwareDatetime, Field(strict=False), AfterValidator(_within_years)]
Project = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Party = Annotated[str, StringConstraints(pattern=PARTY_PATTERN)]
Slug = Annotated[str, StringConstraints(pattern=SLUG_PATTERN)]

Limit = Annotated[int, Query(ge=1, le=200, description="At most so many.")]
After = Annotated[UUID | None, Query(description="Continue after the item that `next` named.")]
SlugPath = Annotated[str, Path(pattern=SLUG_PATTERN)]
SlugQuery = Annotated[str | None, Query(pattern=SLUG_PATTERN)]
