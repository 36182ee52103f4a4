"""What Prometheus sees of the hub."""
