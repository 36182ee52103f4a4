"""The whole story on one machine: a government's vouchers become metered, billed and claimed training runs."""
