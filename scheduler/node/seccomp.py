"""The system calls a job may not make, as a seccomp filter (classic BPF).

A list of what is refused, because jobs are arbitrary programs: what builds or enters namespaces and mounts,
what looks into other processes, what loads code into the kernel, what is not confined by namespaces
(keyrings, vsock, handles of files), and large young interfaces a training job does not need (io_uring,
userfaultfd, bpf). Anything of another architecture kills the process; x32 calls do not exist. Numbers are
those of the kernel's `asm/unistd_64.h` (x86-64) and `asm-generic/unistd.h` (AArch64).
"""

import errno
import platform
import struct
from dataclasses import dataclass
from functools import cache
from typing import Final

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_SKIP: Final = 0x05  # BPF_JMP | BPF_JA
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL_PROCESS: Final = 0x80000000

_AT_NUMBER: Final = 0
_AT_ARCHITECTURE: Final = 4
_X32_BIT: Final = 0x40000000

_NEW_NAMESPACES: Final = 0x7E020080  # every CLONE_NEW* flag
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C
_FAMILIES: Final = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_NETLINK: Final = 16  # AF_NETLINK, for NETLINK_ROUTE only: name resolution lists interfaces
_PR_SET_PDEATHSIG: Final = 1
_SIGKILL: Final = 9
_RLIMIT_CORE: Final = 4
_PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

_NONE: Final = -1
_FEW: Final = 4

# name: (x86-64, AArch64); _NONE where the architecture has no such call
_REFUSED: Final = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "vhangup": (153, 58),
    "syslog": (103, 116),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "memfd_secret": (447, 447),
    "uselib": (134, _NONE),
    "modify_ldt": (154, _NONE),
    "_sysctl": (156, _NONE),
    "iopl": (172, _NONE),
    "ioperm": (173, _NONE),
    "ustat": (136, _NONE),
    "sysfs": (139, _NONE),
}
# Refused as if the kernel were too old to have them, so that programs fall back.
_UNKNOWN: Final = {
    "clone3": (435, 435),
    "io_setup": (206, 0),  # the whole machine has 65,536 of what it takes
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs between the machines we know; `column` selects a call's number in the tables."""

    audit: int
    column: int
    clone: int
    ioctl: int
    socket: int
    personality: int
    prctl: int
    setrlimit: int
    prlimit: int


ARCHITECTURES: Final = {
    "x86_64": Architecture(
        0xC000003E, 0, clone=56, ioctl=16, socket=41, personality=135, prctl=157, setrlimit=160, prlimit=302
    ),
    "aarch64": Architecture(
        0xC00000B7, 1, clone=220, ioctl=29, socket=198, personality=92, prctl=167, setrlimit=164, prlimit=261
    ),
}


@cache
def job_filter(machine: str | None = None) -> bytes:
    """The filter for a machine as `uname -m` calls it, by default this one. Raises KeyError: unknown."""
    architecture = ARCHITECTURES[machine or platform.machine()]
    return b"".join(
        (
            *_only_this(architecture),
            *_refuse_listed(_listed(architecture.column)),
            *_check_clone(architecture.clone),
            *_check_ioctl(architecture.ioctl),
            *_check_socket(architecture.socket),
            *_check_personality(architecture.personality),
            *_check_prctl(architecture.prctl),
            *_check_core_limit(architecture.setrlimit, 0),
            *_check_core_limit(architecture.prlimit, 1),
            _instruction(_RETURN, _ALLOW),
        )
    )


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refuse(number: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | number)


def _argument(index: int) -> bytes:
    # The low half; every argument we look at is an int in the kernel, which ignores the high half.
    return _instruction(_LOAD, 16 + 8 * index)


def _only_this(architecture: Architecture) -> list[bytes]:
    return [
        _instruction(_LOAD, _AT_ARCHITECTURE),
        _instruction(_IF_EQUAL, architecture.audit, 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _AT_NUMBER),
        _instruction(_IF_AT_LEAST, _X32_BIT, 0, 1),
        _refuse(errno.ENOSYS),
    ]


def _listed(column: int) -> list[tuple[int, int]]:
    """What is refused, by number, and with which error."""
    tables = (_REFUSED, errno.EPERM), (_UNKNOWN, errno.ENOSYS)
    found = [(numbers[column], error) for calls, error in tables for numbers in calls.values()]
    return sorted(call for call in found if call[0] != _NONE)


def _refuse_listed(listed: list[tuple[int, int]]) -> list[bytes]:
    # Halved again and again: the kernel runs each filter for every number there is when it is loaded.
    if len(listed) <= _FEW:
        return [
            word for call, error in listed for word in (_instruction(_IF_EQUAL, call, 0, 1), _refuse(error))
        ]
    half = len(listed) // 2
    low, high = _refuse_listed(listed[:half]), _refuse_listed(listed[half:])
    above = _instruction(_IF_AT_LEAST, listed[half][0], len(low) + 1, 0)
    return [above, *low, _instruction(_SKIP, len(high)), *high]


def _only_when(call: int, body: list[bytes]) -> list[bytes]:
    return [_instruction(_IF_EQUAL, call, 0, len(body)), *body]


def _check_clone(call: int) -> list[bytes]:
    bits = _instruction(_IF_ANY_BIT, _NEW_NAMESPACES, 0, 1)
    return _only_when(call, [_argument(0), bits, _refuse(errno.EPERM), _instruction(_RETURN, _ALLOW)])


def _check_ioctl(call: int) -> list[bytes]:
    body = [_argument(1)]
    for request in (_TIOCSTI, _TIOCLINUX):
        body += [_instruction(_IF_EQUAL, request, 0, 1), _refuse(errno.EPERM)]
    return _only_when(call, [*body, _instruction(_RETURN, _ALLOW)])


def _check_socket(call: int) -> list[bytes]:
    body = [_argument(0)]
    for family in _FAMILIES:
        body += [_instruction(_IF_EQUAL, family, 0, 1), _instruction(_RETURN, _ALLOW)]
    body += [_instruction(_IF_EQUAL, _NETLINK, 1, 0), _refuse(errno.EAFNOSUPPORT)]
    body += [_argument(2), _instruction(_IF_EQUAL, 0, 0, 1), _instruction(_RETURN, _ALLOW)]
    return _only_when(call, [*body, _refuse(errno.EAFNOSUPPORT)])


def _check_prctl(call: int) -> list[bytes]:
    # A job can write into the memory of the sandbox's first process, which is of the same uid, and make it forget
    # the signal by which it dies with the supervisor. Programs that choose a gentler signal for themselves are
    # told that it worked: theirs die with the sandbox anyway.
    pretend = _refuse(0)
    body = [_argument(0), _instruction(_IF_EQUAL, _PR_SET_PDEATHSIG, 1, 0), _instruction(_RETURN, _ALLOW)]
    body += [_argument(1), _instruction(_IF_EQUAL, _SIGKILL, 0, 1), _instruction(_RETURN, _ALLOW), pretend]
    return _only_when(call, body)


def _check_core_limit(call: int, argument: int) -> list[bytes]:
    # A core limit of one byte keeps the kernel from handing a crashed job to the host's crash handler, which is root's;
    # any other, zero too, would not (fs/coredump.c). Programs that want no dump are told that they got that.
    body = [_argument(argument), _instruction(_IF_EQUAL, _RLIMIT_CORE, 1, 0), _instruction(_RETURN, _ALLOW)]
    if argument:  # prlimit64 without a new value only asks
        body += _unless_asked(2)
    return _only_when(call, [*body, _refuse(0)])


def _unless_asked(index: int) -> list[bytes]:
    null = [_instruction(_IF_EQUAL, 0, 0, 1), _instruction(_RETURN, _ALLOW)]
    high = _instruction(_LOAD, 16 + 8 * index + 4)
    return [_argument(index), _instruction(_IF_EQUAL, 0, 0, 3), high, *null]


def _check_personality(call: int) -> list[bytes]:
    body = [_argument(0)]
    for allowed in _PERSONALITIES:
        body += [_instruction(_IF_EQUAL, allowed, 0, 1), _instruction(_RETURN, _ALLOW)]
    return _only_when(call, [*body, _refuse(errno.EPERM)])
