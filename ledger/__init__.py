"""Double-entry accounts and two-phase transfers. It does not know what a voucher is."""
