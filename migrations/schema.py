"""All tables of all contexts in one metadata, which the migrations are held against by a test."""

import vouchers.tables  # noqa: F401 - registers its tables
from kernel.database import Table

metadata = Table.metadata
