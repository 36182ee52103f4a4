"""All tables of all contexts in one metadata, which the migrations are held against by a test."""

# Each import registers its tables.
import compute_hub.api.tables  # noqa: F401
import compute_hub.billing.tables  # noqa: F401
import compute_hub.identity.tables  # noqa: F401
import compute_hub.metering.tables  # noqa: F401
import compute_hub.telemetry.tables  # noqa: F401
import ledger.tables  # noqa: F401
import scheduler.tables  # noqa: F401
import vouchers.tables  # noqa: F401
from kernel.database import Table

metadata = Table.metadata
