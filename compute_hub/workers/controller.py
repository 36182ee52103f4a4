"""`hub controller`: the scheduler's controller with the hub's money behind it."""

import os
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

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
from kernel.collecting import collect_seldom
from kernel.database import open_engine
from kernel.logs import configure_logs
from scheduler.controller.inventory import links_of
from scheduler.controller.loop import Controller, Pace
from scheduler.controller.wakeups import Wakeups, notifications
from scheduler.jobs import WAKE_CHANNEL
from scheduler.node.relay import read_token
from scheduler.node.simulated import SimulatedMachine
from scheduler.ray.autoscaling import RayAutoscaler, keep_telling
from scheduler.ray.cluster import RayMachines
from scheduler.store import Store

if TYPE_CHECKING:
    from scheduler.ray.simulated import SharedRayNode


def run_controller(settings: Settings, schedule: Path | None = None) -> None:
    """Lead (or stand by) until SIGTERM or SIGINT; with a schedule on simulated nodes that share one Ray node."""
    configure_logs("controller")
    stopping = {signal.SIGTERM, signal.SIGINT}
    # Waited for, not handled: whatever the main thread is in, it is in it to the end.
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    export_ray_environment(settings)  # for the courier
    url = application_url(settings)
    engine = open_engine(url, part="controller", pool_size=2, idle_ms=settings.leader_lease_ms, look=False)
    wakeups = Wakeups()
    machines = _machines(settings, engine, wakeups, schedule)
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
    collect_seldom()
    threading.Thread(target=_stop_when_told, args=(controller, stopping), daemon=True).start()
    wakeups.watch("database", notifications(url, WAKE_CHANNEL))
    serve_metrics(settings, "controller")  # says that it is ready to lead
    done = threading.Event()
    if settings.autoscaler == "ray":
        hint = RayAutoscaler(ray_address(settings))
        threading.Thread(target=keep_telling, args=(engine, hint, done), name="autoscaler", daemon=True).start()
    controller.run()
    done.set()
    wakeups.stop()
    machines.close()
    spans.close()
    engine.dispose()


def _machines(
    settings: Settings, engine: Engine, wakeups: Wakeups, schedule: Path | None
) -> "RayMachines | SharedRayNode":
    """The way to the nodes."""
    if schedule is not None:
        from scheduler.ray.simulated import (  # noqa: PLC0415 - Ray reads its environment when it is imported
            SharedRayNode,
        )

        return SharedRayNode(
            ray_address(settings),
            wakeups,
            simulated_machines(settings),
            meter_interval_ms=settings.meter_interval_ms,
            schedule=schedule,
        )
    token = read_token(token_file(settings))
    return RayMachines(ray_address(settings), wakeups, links=links_of(engine), token=token)


def simulated_machines(settings: Settings) -> list[SimulatedMachine]:
    """The nodes of the settings as a replay plays them."""
    return [
        SimulatedMachine(
            node=node.name,
            host_id=f"simulated/{node.name}",
            model=node.devices[0].model,
            vendor="simulated",
            devices=sum(part.count for part in node.devices),
            cpu_milli=node.cpu_milli,
            memory_mib=node.memory_mib,
            labels=dict(node.labels),
        )
        for node in settings.nodes
    ]


def _stop_when_told(controller: Controller, signals: set[signal.Signals]) -> None:
    signal.sigwait(signals)
    controller.stop()
