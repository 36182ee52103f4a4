"""Those that are compared: the hub itself, Slurm, and Ray's Jobs API, each started, measured and ended the same way."""
