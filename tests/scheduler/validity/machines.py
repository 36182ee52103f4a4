"""Rules of machines: no slot twice, processors and memory as they are, whole gangs on one model, reservations."""

from collections import defaultdict

from tests.scheduler.validity.facts import WHOLE, Asked, Attempt, Log, Piece


def slots(log: Log) -> list[str]:
    by_device: dict[tuple[str, int], list[tuple[int, int, int, int, str]]] = defaultdict(list)
    machines = {machine.name: machine for machine in log.machines}
    found = []
    for attempt in log.attempts:
        for piece in attempt.pieces:
            if not 0 <= piece.device < machines[piece.node].devices:
                found.append(f"{attempt.job} holds device {piece.device} that {piece.node} does not have")
            if not 0 <= piece.lo < piece.hi <= WHOLE:
                found.append(f"{attempt.job} holds the impossible range [{piece.lo}, {piece.hi})")
            row = (attempt.start_ms, attempt.end_ms, piece.lo, piece.hi, attempt.job)
            by_device[piece.node, piece.device].append(row)
        found += [
            f"{attempt.job} runs on {name} while it is lost"
            for name in attempt.nodes
            for gone, back in machines[name].lost
            if attempt.start_ms < back and gone < attempt.end_ms
        ]
    for device, rows in by_device.items():
        rows.sort()
        live: list[tuple[int, int, int, int, str]] = []
        for row in rows:
            live = [other for other in live if other[1] > row[0]]
            found += [
                f"{row[4]} and {other[4]} share slots of {device}"
                for other in live
                if other[2] < row[3] and row[2] < other[3]
            ]
            live.append(row)
    return found


def hosts(log: Log, asked: dict[str, Asked]) -> list[str]:
    """Processors and memory of every machine at every moment; the model of every device."""
    found = []
    changes: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    machines = {machine.name: machine for machine in log.machines}
    for attempt in log.attempts:
        job = asked[attempt.job]
        models = {machines[name].model for name in attempt.nodes}
        if len(models) > 1:
            found.append(f"{attempt.job} runs on two models at once")
        if job.models and not models <= set(job.models):
            found.append(f"{attempt.job} runs on {models}, which it did not ask for")
        if any(machines[name].pflops_milli < job.pflops_milli for name in attempt.nodes):
            found.append(f"{attempt.job} runs on devices weaker than it asked for")
        for name in attempt.nodes:
            changes[name].append((attempt.start_ms, job.cpu_milli, job.memory_mib))
            changes[name].append((attempt.end_ms, -job.cpu_milli, -job.memory_mib))
    for name, rows in changes.items():
        cpu = memory = 0
        for _, more_cpu, more_memory in sorted(rows):
            cpu += more_cpu
            memory += more_memory
            if cpu > machines[name].cpu_milli or memory > machines[name].memory_mib:
                found.append(f"{name} gives more processors or memory than it has")
                break
    return found


def gangs(log: Log, asked: dict[str, Asked]) -> list[str]:
    """All of a gang or nothing: each node its part, of whole devices or fractions as asked."""
    found = []
    for attempt in log.attempts:
        job = asked[attempt.job]
        parts: dict[str, list[Piece]] = {name: [] for name in attempt.nodes}
        for piece in attempt.pieces:
            parts[piece.node].append(piece)
        if len(set(attempt.nodes)) != job.nodes + bool(job.tail):
            found.append(f"{attempt.job} got {len(parts)} nodes of {job.nodes}")
            continue
        sizes = sorted(len({piece.device for piece in pieces}) for pieces in parts.values())
        expected = sorted([job.devices] * job.nodes + ([job.tail] if job.tail else []))
        if sizes != expected:
            found.append(f"{attempt.job} got devices {sizes} instead of {expected}")
        if any(piece.hi - piece.lo != job.slots for piece in attempt.pieces):
            found.append(f"{attempt.job} got other fractions than it asked for")
    return found


def switches(log: Log, asked: dict[str, Asked]) -> list[str]:
    """A gang that asked for one switch lies in one of the innermost domains of its model, where there are any."""
    machines = {machine.name: machine for machine in log.machines}
    found = []
    for attempt in log.attempts:
        if not asked[attempt.job].same_switch or len(attempt.nodes) == 1:
            continue
        model = machines[attempt.nodes[0]].model
        deepest = max(len(one.switch) for one in log.machines if one.model == model)
        lies_in = {machines[name].switch for name in attempt.nodes}
        if deepest and (len(lies_in) > 1 or len(next(iter(lies_in))) < deepest):
            found.append(f"{attempt.job} asked for one switch and lies in {sorted(lies_in)}")
    return found


def tails(log: Log, asked: dict[str, Asked]) -> list[str]:
    """What is left over of a gang begins on a machine nobody else uses then."""
    present: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in log.attempts:
        one_of = asked[attempt.job]
        if not (one_of.devices or one_of.cpu_milli or one_of.memory_mib):
            continue  # it is nowhere in particular
        for name in dict.fromkeys(attempt.nodes):
            present[name].append(attempt)
    found = []
    for attempt in log.attempts:
        job = asked[attempt.job]
        parts = {name: sum(piece.node == name for piece in attempt.pieces) for name in attempt.nodes}
        if job.tail and not any(
            taken == job.tail
            and not any(
                one is not attempt and one.start_ms < attempt.start_ms < one.end_ms for one in present[name]
            )
            for name, taken in parts.items()
        ):
            found.append(f"{attempt.job} has no machine of its own for what is left over of it")
    return found


def reservations(log: Log) -> list[str]:
    """Nobody runs on reserved or drained nodes but those they are reserved for."""
    return [
        f"{attempt.job} runs on {sorted(set(attempt.nodes) & set(kept.nodes))} while they are reserved"
        for kept in log.kept
        for attempt in log.attempts
        if attempt.job not in kept.for_jobs
        and attempt.start_ms < kept.to_ms
        and kept.from_ms < attempt.end_ms
        and set(attempt.nodes) & set(kept.nodes)
    ]
