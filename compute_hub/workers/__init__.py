"""The hub's long-running processes: controller, biller, API server."""
