"""Drives the policy live: commits intents under a fenced epoch, syncs nodes to them, applies what they report."""
