"""Queues, policy, simulator, controller and node agents. It does not know what money is."""
