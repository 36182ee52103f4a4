"""The parts of the centre's metrics: each file declares some families and reads them with a few set-based queries."""
