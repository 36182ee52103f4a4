"""Words that every context shares: money, time, identity, refusals and the database session."""
