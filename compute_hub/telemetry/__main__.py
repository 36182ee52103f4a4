"""`python -m compute_hub.telemetry`: print the reference of all metrics."""

import sys

from compute_hub.telemetry.reference import reference

sys.stdout.write(reference())
