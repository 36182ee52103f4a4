"""The command line against the API on a real database."""

from tests.compute_hub.api.conftest import house

__all__ = ["house"]
