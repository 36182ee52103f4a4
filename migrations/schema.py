"""All tables of all contexts in one metadata, which the migrations are held against by a test."""

from kernel.database import Table

metadata = Table.metadata
