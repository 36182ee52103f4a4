"""The boards, one file per reader."""

from typing import Final

from deploy.grafana.boards.centre import CENTRE
from deploy.grafana.boards.nodes import NODES
from deploy.grafana.boards.platform import PLATFORM
from deploy.grafana.boards.scheduler import SCHEDULER
from deploy.grafana.boards.tenant import TENANT
from deploy.grafana.boards.vouchers import VOUCHERS

BOARDS: Final = (CENTRE, VOUCHERS, TENANT, SCHEDULER, NODES, PLATFORM)
