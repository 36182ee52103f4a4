"""A network over several hosts for the ranks of one gang and nobody else: VXLAN between the gang's namespaces.

Each host of the gang has a VXLAN device in the gang's namespace (`gangs.py`); only its UDP socket is in the host's.
Nothing else leads out of that namespace: no route, no host, no metadata address. The device ends with the namespace,
so kill -9 leaves nothing. Each rank has an address of its own there (`protocol.rank_address`).

Nothing is learnt and nothing is flooded. The kernel is told each other host's MAC, underlay address and ranks, and
    sends    to these alone: a frame to any other MAC is dropped, broadcast and multicast among them; there is no ARP;
    takes in frames with the gang's number, from the MAC of another host of the gang and the address of a rank there
             (nftables), if they came from that host's underlay address: the kernel drops a frame whose MAC it was told
             to be behind another one (`learning` beside permanent entries, of which `maxaddress` allows no more).
MACs follow from the gang's id, too, so two gangs that chance to have one number are not joined, and one host refuses
the second. This rests on nobody else's sending from the hosts' addresses. No job can: it has no network but its gang's,
for which reason a node whose jobs may use the host's spans no hosts. Frames are not encrypted.
"""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from scheduler.node.config import NodeConfig, SandboxMode
from scheduler.node.errors import InvalidRun, MissingHere, NodeFailed
from scheduler.node.processes import await_end
from scheduler.node.protocol import RANK_NETWORK, Gang, RunSpec, rank_address

INTERFACE: Final = "gang0"

PORT: Final = 4789
"""UDP, IANA's for VXLAN: to be open among the centre's machines, and to nobody else."""

PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS: Final = {"ip": "iproute2", "bridge": "iproute2", "nft": "nftables", "nsenter": "util-linux"}
_OVERHEAD_BYTES: Final = {4: 50, 6: 70}
_VNIS: Final = 2**24 - 1
_COMMAND_S: Final = 10.0
_TAKEN: Final = "VNI already exists"
_TAKEN_ROUNDS: Final = 50
_TAKEN_PAUSE_S: Final = 0.04


class CommandFailed(NodeFailed):
    """A command that makes networks failed; `said` are its last words."""

    sentence = "The network of a gang that spans hosts could not be made: {program}: {said}"


@dataclass(frozen=True, slots=True)
class Overlay:
    """This host's end of such networks: its address on the underlay, and the largest packet inside in bytes."""

    address: str
    mtu: int

    def check(self, spec: RunSpec, gang: Gang) -> None:
        """Refuse peers that cannot be meant. Raises InvalidRun; MissingHere if this host has another address now."""
        if len(gang.peers) != spec.world_size or not 0 <= spec.rank < spec.world_size:
            raise InvalidRun(field="gang.peers", problem="must be one address for each rank")
        if spec.world_size > RANK_NETWORK.num_addresses - 2:
            raise InvalidRun(field="gang.peers", problem="are more than a gang's network has addresses for")
        version = ip_address(self.address).version
        for peer in gang.peers:
            if _ip_version(peer) != version:
                problem = (
                    f"must be addresses of IP version {version} as this host's {self.address}, not {peer!r}"
                )
                raise InvalidRun(field="gang.peers", problem=problem)
        if len(set(gang.peers)) == 1:
            problem = (
                f"must be of several hosts; all of this gang say that others reach them at {gang.peers[0]}"
            )
            raise InvalidRun(field="gang.peers", problem=problem)
        if gang.peers[spec.rank] != self.address:
            why = f"Other hosts reach this node at {self.address}, not at {gang.peers[spec.rank]}."
            raise MissingHere(why=why)

    async def extend(self, gang: Gang, namespace: int) -> None:
        """Let a gang's namespace (a descriptor of it) reach the gang's other hosts.

        Raises:
            NodeFailed: with what this host lacks for it.
            MissingHere: this host has a network of that number already.
        """
        ranks: dict[str, list[str]] = {}
        for rank, peer in enumerate(gang.peers):
            ranks.setdefault(peer, []).append(rank_address(rank))
        own = ranks.pop(self.address)
        macs = {host: mac_of(gang.id, host) for host in ranks}
        await self._make_device(gang, namespace, others=len(ranks))
        places = [(address, macs[host]) for host, addresses in ranks.items() for address in addresses]
        await _run_inside(namespace, ("nft", "-f", "-"), _fence(places))
        forwarded = (f"fdb add {macs[host]} dev {INTERFACE} dst {host} self permanent" for host in ranks)
        await _run_inside(namespace, ("bridge", "-batch", "-"), _lines(forwarded))
        configured = (
            f"link set {INTERFACE} arp off addrgenmode none",
            *(f"addr add {address}/{RANK_NETWORK.prefixlen} dev {INTERFACE}" for address in own),
            *(f"neigh add {address} lladdr {mac} dev {INTERFACE} nud permanent" for address, mac in places),
            f"link set {INTERFACE} up",
        )
        await _run_inside(namespace, ("ip", "-batch", "-"), _lines(configured))

    async def _make_device(self, gang: Gang, namespace: int, *, others: int) -> None:
        number = vni_of(gang.id)
        command = (
            *("ip", "link", "add", INTERFACE, "netns", f"/proc/self/fd/{namespace}"),
            *("address", mac_of(gang.id, self.address), "mtu", str(self.mtu)),
            *("type", "vxlan", "id", str(number), "local", self.address, "dstport", str(PORT)),
            *("learning", "maxaddress", str(others)),
        )
        for _ in range(_TAKEN_ROUNDS):
            try:
                await _run(command, "", (namespace,))
            except CommandFailed as error:
                if _TAKEN not in str(error):
                    raise
                await asyncio.sleep(
                    _TAKEN_PAUSE_S
                )  # a namespace that ended gives its device back a moment later
            else:
                return
        raise MissingHere(why=f"This node has a network number {number} already, which would be this gang's.")


def vni_of(gang_id: str) -> int:
    """The 24 bits that tell a gang's frames from those of others on one host."""
    return 1 + int.from_bytes(hashlib.sha256(gang_id.encode()).digest()[:8]) % _VNIS


def mac_of(gang_id: str, host: str) -> str:
    """A host's MAC in a gang's network: locally administered, and another one in every gang."""
    return ":".join(f"{part:02x}" for part in b"\2" + hashlib.sha256(f"{gang_id} {host}".encode()).digest()[:5])


async def open_overlay(config: NodeConfig) -> Overlay:
    """This host's end, as far as that can be known before one is made. Raises NodeFailed with why there is none."""
    if os.geteuid() != 0:
        raise NodeFailed(why="its supervisor is not root.")
    if config.sandbox is not SandboxMode.NAMESPACES or config.host_network:
        raise NodeFailed(
            why="its jobs may use the host's network, from where they could send into those of gangs."
        )
    if _ip_version(config.span_address) is None:
        raise NodeFailed(why=f"its span_address, {config.span_address!r}, is no IP address.")
    address = ip_address(config.span_address)
    if address.is_loopback or address.is_unspecified:
        raise NodeFailed(why=f"its span_address, {address}, is one that other machines cannot reach.")
    for program, package in _PROGRAMS.items():
        if shutil.which(program, path=PATH) is None:
            raise NodeFailed(why=f"{program} is not installed (package {package}).")
    shown = json.loads(await _run(("ip", "-json", "address", "show", "to", str(address)), "", ()) or "[]")
    interfaces = [interface for interface in shown if interface]
    if not interfaces:
        raise NodeFailed(why=f"none of its interfaces has its span_address, {address}.")
    return Overlay(str(address), int(interfaces[0]["mtu"]) - _OVERHEAD_BYTES[address.version])


def _fence(places: Iterable[tuple[str, str]]) -> str:
    known = ", ".join(f"{mac} . {address}" for address, mac in places)
    return f"""
        table inet gang {{
            set ranks {{ type ether_addr . ipv4_addr; elements = {{ {known} }} }}
            chain input {{
                type filter hook input priority filter; policy drop;
                iif lo accept
                iifname {INTERFACE} ether saddr . ip saddr @ranks accept
            }}
        }}
    """


def _lines(commands: Iterable[str]) -> str:
    return "".join(f"{command}\n" for command in commands)


def _ip_version(text: str) -> int | None:
    try:
        return ip_address(text).version
    except ValueError:
        return None


async def _run_inside(namespace: int, command: tuple[str, ...], script: str) -> None:
    await _run(("nsenter", f"--net=/proc/self/fd/{namespace}", *command), script, (namespace,))


async def _run(command: tuple[str, ...], script: str, handles: tuple[int, ...]) -> str:
    """What it said. Raises CommandFailed, OSError."""
    asked, said = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("asked", "said"))
    try:
        os.write(asked, script.encode())
        os.lseek(asked, 0, os.SEEK_SET)
        process = subprocess.Popen(  # noqa: ASYNC220 - only the start is waited for, on purpose on this thread
            command,
            stdin=asked,
            stdout=said,
            stderr=said,
            pass_fds=handles,
            env={"PATH": PATH, "LC_ALL": "C"},
        )
        try:
            await await_end(process, _COMMAND_S)
        except TimeoutError:
            raise CommandFailed(program=command[0], said=f"it takes longer than {_COMMAND_S} s.") from None
        words = os.pread(said, os.fstat(said).st_size, 0).decode(errors="replace").strip()
        if process.returncode != 0:
            raise CommandFailed(program=command[0], said=words or f"left with status {process.returncode}.")
        return words
    finally:
        os.close(asked)
        os.close(said)
