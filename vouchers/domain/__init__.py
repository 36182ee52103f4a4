"""The voucher rules as pure functions over frozen values."""
