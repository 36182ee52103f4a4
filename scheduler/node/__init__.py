"""The supervisor of one machine: sandboxes, leases and meters at the source."""
