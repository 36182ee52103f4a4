"""Usage as the node supervisors measured it, kept once and never changed."""
