"""Drives the policy from trace files through discrete events, without a cluster."""
