"""`hub controller`: the scheduler's controller with the hub's money behind it."""

import os
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from sqlalchemy import Engine

from compute_hub.billing.funding import Funding
from compute_hub.queues import live_queues
from compute_hub.settings import Settings
from compute_hub.stack.claim import claim
from compute_hub.stack.database import application_url
from compute_hub.stack.ray_node import RayNode, export_ray_environment, ray_address, token_file
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


_log = structlog.get_logger(__name__)

_CHECK_S: Final = 0.5

MARK: Final = "HUB_CONTROLLER"
"""Tells the processes of a controller's own raylet from all others."""


def run_controller(
    settings: Settings, *, schedule: Path | None = None, raylet: bool = False, head: bool = False
) -> None:
    """Lead (or stand by) until SIGTERM or SIGINT.

    Args:
        settings: of the hub.
        schedule: what ran is written here; the nodes are simulated ones that share one Ray node.
        raylet: also run a raylet, without which nobody on a machine can see the cluster.
        head: also run the head of the cluster, and a raylet.
    """
    configure_logs("controller")
    here = _own_machine(settings) if raylet or head else None
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
    joined = _join(settings, here, done, head=head) if here is not None else None
    controller.run()
    done.set()
    wakeups.stop()
    machines.close()
    if joined is not None:
        joined.join()
    spans.close()
    engine.dispose()


@dataclass(frozen=True, slots=True)
class _Machine:
    """The machine of a controller that has a raylet of its own."""

    host: str
    folder: Path
    claimed: int


def _own_machine(settings: Settings) -> _Machine:
    """Raises AlreadyRuns."""
    host = socket.gethostname()
    folder = settings.state_directory.resolve() / "controllers" / host
    return _Machine(host, folder, claim(folder, f"A controller with a raylet on {host}"))


def _join(settings: Settings, here: _Machine, done: threading.Event, *, head: bool) -> threading.Thread:
    """Have this machine in the cluster until it is done."""

    def keep() -> None:
        # Its children end with the thread that started them: this one lasts as long as they shall.
        name, log = f"controller {here.host}", here.folder / "ray.log"
        ray: RayNode | None = None
        while not done.wait(_CHECK_S):
            try:
                ray = ray or RayNode(
                    settings, name, mark=(MARK, str(here.folder)), resources={}, head=head, log=log
                )
                ray.mend()
            except OSError as error:  # tried again; relays reach the nodes meanwhile
                _log.error("raylet_not_started", error=str(error))
        if ray is not None:
            ray.stop()
        os.close(here.claimed)

    thread = threading.Thread(target=keep, name="ray")
    thread.start()
    return thread


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
