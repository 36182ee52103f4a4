"""`hub controller`: the scheduler's controller with the hub's money behind it."""

import os
import signal
import socket
import threading

from compute_hub.billing.funding import Funding
from compute_hub.queues import live_queues
from compute_hub.settings import Settings
from compute_hub.stack.database import application_url
from compute_hub.stack.ray_node import export_ray_environment, ray_address, token_file
from compute_hub.telemetry.instruments import ControllerGauge, MeasuredAccounting, MeasuredMachines
from compute_hub.telemetry.journeys import Journeys
from compute_hub.telemetry.serving import serve_metrics
from compute_hub.telemetry.tracing import open_spans
from compute_hub.vault import open_vault
from kernel.database import open_engine
from kernel.logs import configure_logs
from scheduler.controller.desired import Store
from scheduler.controller.inventory import links_of
from scheduler.controller.loop import Controller, Pace
from scheduler.controller.wakeups import Wakeups, notifications
from scheduler.jobs import WAKE_CHANNEL
from scheduler.node.relay import read_token


def run_controller(settings: Settings) -> None:
    """Lead (or stand by) until SIGTERM or SIGINT."""
    configure_logs("controller")
    stopping = {signal.SIGTERM, signal.SIGINT}
    # Waited for, not handled: Ray puts its own handlers over ours whenever it connects.
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    export_ray_environment(settings)
    from scheduler.ray.cluster import RayMachines  # noqa: PLC0415 - Ray reads its environment when it is imported

    url = application_url(settings)
    engine = open_engine(url, pool_size=2, idle_ms=settings.leader_lease_ms, ping=False)
    wakeups = Wakeups()
    machines = RayMachines(
        ray_address(settings), wakeups, links=links_of(engine), token=read_token(token_file(settings))
    )
    spans = open_spans(settings, "controller")
    controller = Controller(
        engine,
        MeasuredMachines(machines),
        MeasuredAccounting(Funding(settings.hold_horizon_ms, settings.centre_facts, settings.draws)),
        Store(settings.uploads, settings.workspaces, open_vault(settings.secrets_key)),
        holder=f"{socket.gethostname()}:{os.getpid()}",
        pace=Pace(settings.tick_ms, settings.leader_lease_ms, settings.node_lease_ms),
        wakeups=wakeups,
        queues=live_queues(settings),
        watcher=ControllerGauge(Journeys(spans).moved),
    )
    threading.Thread(target=_stop_when_told, args=(controller, stopping), daemon=True).start()
    wakeups.watch("database", notifications(url, WAKE_CHANNEL))
    serve_metrics(settings, "controller")  # says that it is ready to lead
    controller.run()
    wakeups.stop()
    machines.close()
    spans.close()
    engine.dispose()


def _stop_when_told(controller: Controller, signals: set[signal.Signals]) -> None:
    signal.sigwait(signals)
    controller.stop()
