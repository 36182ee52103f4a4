import pytest
from sqlalchemy import Engine

from tests.compute_hub.billing.house import House


@pytest.fixture
def house(engine: Engine) -> House:
    return House(engine)
