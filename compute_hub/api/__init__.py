"""The HTTP face of the hub: /v1, JSON, problem+json, one transaction per request."""
