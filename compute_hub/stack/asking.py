"""Asking the API of a hub that is being started, which may not be ready, or not be what answers on its port."""

from collections.abc import Mapping
from typing import Final

import httpx

from kernel.errors import HubError

_SAID_MAX: Final = 200


class StrangeAnswer(HubError):
    """What answers is not ready, or not the hub's API."""

    sentence = (
        "{url} answered {status}: {said}; if that is not the hub's, another program has its port, "
        "and HUB_API_PORT names another one"
    )


def ask(url: str, headers: Mapping[str, str] | None = None) -> object:
    """What it says in JSON. Raises StrangeAnswer, httpx.TransportError."""
    answer = httpx.get(url, headers=headers)
    try:
        content = answer.json()
    except ValueError:
        content = None
    if not answer.is_success or content is None:
        said = " ".join(answer.text.split())[:_SAID_MAX] or "nothing"
        raise StrangeAnswer(url=url, status=answer.status_code, said=said)
    return content


def nodes_up(url: str, headers: Mapping[str, str]) -> int:
    """How many nodes are up. Raises StrangeAnswer, httpx.TransportError."""
    cluster = ask(url, headers)
    try:
        return sum(node["state"] == "up" for node in cluster["nodes"])  # type: ignore[index] # or it is strange
    except (KeyError, TypeError, IndexError) as error:
        raise StrangeAnswer(url=url, status=200, said=str(cluster)[:_SAID_MAX]) from error
