"""The ledger's rules as pure functions over frozen values."""
