"""Grafana boards as code: `python -m deploy.grafana` writes dashboards/*.json, which Grafana is provisioned with."""
