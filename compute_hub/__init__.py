"""The hub itself: identity, jobs API, metering, billing, console, telemetry and the processes they run in."""
