"""Rules of rating and invoicing: pure functions over frozen facts."""
