"""What a hostile tenant tries: programs that leave with status 42 when they got what they must not get.

Each runs as an ordinary job. `TARGET_*` variables tell it what it could not know: where the host's secrets lie,
which ports are open, which pid its victim has.
"""

PRELUDE = '''
import ctypes, errno, glob, os, platform, resource, signal, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
target = {name[7:].lower(): value for name, value in os.environ.items() if name.startswith("TARGET_")}
column = 0 if platform.machine() == "x86_64" else 1
NUMBERS = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268), "clone": (56, 220), "clone3": (435, 435), "ptrace": (101, 117), "add_key": (248, 217),
    "keyctl": (250, 219), "request_key": (249, 218), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "process_vm_readv": (310, 270), "acct": (163, 89),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "personality": (135, 92),
    "reboot": (169, 142),
    "init_module": (175, 105), "kexec_load": (246, 104), "sethostname": (170, 161), "clock_settime": (227, 112),
    "swapon": (167, 224), "fsopen": (430, 430), "open_tree": (428, 428), "mount_setattr": (442, 442),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "syslog": (103, 116), "quotactl": (179, 60),
    "capset": (126, 91), "shmget": (29, 194), "iopl": (172, 9999), "ioperm": (173, 9999),
    "kcmp": (312, 272), "fanotify_init": (300, 262), "io_setup": (206, 0), "setrlimit": (160, 164),
    "prlimit64": (302, 261),
}
def call(name, *arguments):
    """The system call's result, or minus its errno."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = libc.syscall(ctypes.c_long(NUMBERS[name][column]), *words)
    return result if result != -1 else -ctypes.get_errno()
def escaped(what):
    print("ESCAPED:", what, flush=True)
    os._exit(42)
def reads(path):
    try:
        with open(path, "rb") as file:
            return file.read(65536)
    except OSError:
        return None
def writes(path):
    try:
        with open(path, "r+b" if os.path.exists(path) else "wb") as file:
            file.write(b"x")
        return True
    except OSError:
        return False
def connects(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        try:
            s.connect(address)
            return True
        except OSError:
            return False
'''

ESCAPES = {
    # Files of the host and of others
    "read a secret of the host": "if reads(target['secret']): escaped('read')",
    "find a secret of the host anywhere": """
for folder, folders, files in os.walk("/"):
    skipped = ("/proc", "/usr", target["python"])
    folders[:] = [name for name in folders if os.path.join(folder, name) not in skipped]
    if "host-secret" in files: escaped(folder)
""",
    "reach the host through another process's root": """
for root in glob.glob("/proc/[0-9]*/root"):
    if reads(root + target["secret"]): escaped(root)
""",
    "reach the host through another process's folder": """
for cwd in glob.glob("/proc/[0-9]*/cwd"):
    if reads(cwd + "/.." * 12 + target["secret"]): escaped(cwd)
""",
    "climb out of the workspace": "if reads('/job' + '/..' * 20 + target['secret']): escaped('climbed')",
    "read another tenant's workspace": "if reads(target['victim_file']): escaped('read')",
    "list the workspaces of others": """
try: escaped(os.listdir(os.path.dirname(target["victim_workspace"])))
except OSError: pass
""",
    "read the supervisor's journal": "if reads(target['state'] + '/spool'): escaped('read')",
    "talk to the supervisor": "if connects(1, target['state'] + '/supervisor.sock'): escaped('talked')",
    "read the host's passwords": "if reads('/etc/shadow'): escaped('read')",
    "read the host's users": "if b'root:' in (reads('/etc/passwd') or b''): escaped('read')",
    "write to the system": "if writes('/usr/bin/hub-escape') or writes('/usr/bin/env'): escaped('wrote')",
    "write to the environment": "if writes(target['python'] + '/escape'): escaped('wrote')",
    "write to /etc": "if writes('/etc/passwd') or writes('/etc/escape'): escaped('wrote')",
    "write to the root": """
for folder in ("/", "/dev", "/run", "/run/secrets", "/bin", "/proc"):
    if writes(folder + "/escape"): escaped(folder)
""",
    "link a file of the system into the workspace": """
try: os.link("/usr/bin/env", "/job/env")
except OSError as error:
    if error.errno not in (errno.EXDEV, errno.EPERM, errno.EROFS): raise
else: escaped("linked")
""",
    "use a handle of a file": """
handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
mount = ctypes.c_int()
if call("name_to_handle_at", -100, b"/usr", handle, ctypes.byref(mount), 0) >= 0: escaped("named")
if call("open_by_handle_at", os.open("/job", 0), handle, 0) >= 0: escaped("opened")
""",
    # Environment and descriptors
    "read the environment of the launcher": """
for file in glob.glob("/proc/[0-9]*/environ"):
    text = reads(file) or b""
    if b"PYTHONPATH" in text or b"HUB_TEST_MARK" in text: escaped(file)
if b"=" in (reads("/proc/1/environ") or b"").replace(b"PWD=/", b""): escaped(reads("/proc/1/environ"))
""",
    "learn host paths from command lines": """
for file in glob.glob("/proc/[0-9]*/cmdline"):
    text = (reads(file) or b"")
    if target["state"].encode() in text or b"--" + b"ro-bind" in text or b"bec" + b"oming" in text: escaped(text)
""",
    "find inherited descriptors": """
allowed = {"/dev/null", "pipe"}
for name in os.listdir("/proc/self/fd"):
    try: where = os.readlink("/proc/self/fd/" + name)
    except OSError: continue
    if int(name) > 2 and not where.startswith("/proc/"): escaped(name + where)
    if where.startswith(("/", "socket")) and not where.startswith(("/dev/null", "/proc/")): escaped(where)
""",
    "find descriptors of the sandbox's first process": """
try: names = os.listdir("/proc/1/fd")
except PermissionError: names = []
for name in names:
    where = os.readlink("/proc/1/fd/" + name)
    if not where.startswith(("/dev/null", "pipe:", "anon_inode:[event", "anon_inode:[signal")): escaped(where)
""",
    "read secrets of another job": "if os.listdir('/run/secrets'): escaped(os.listdir('/run/secrets'))",
    # Processes
    "see processes of others": """
mine = {os.getpid(), os.getppid(), 1}
others = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and int(pid) not in mine]
if others: escaped(others)
""",
    "kill the victim": """
for pid in {int(target["victim_pid"]), int(target["supervisor_pid"])}:
    try: os.kill(pid, 9)
    except OSError: pass
""",
    "kill everything": """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.kill(-1, signal.SIGTERM)
    os._exit(0)
os.wait()
""",
    "kill the sandbox's first process": """
for number in range(1, 65):
    try: os.kill(1, number)
    except OSError: pass
if not os.path.exists("/proc/1"): escaped("killed")
""",
    "trace the sandbox's first process": "if call('ptrace', 16, 1, 0, 0) >= 0: escaped('attached')",
    "be traced": "if call('ptrace', 0, 0, 0, 0) >= 0: escaped('traced')",
    "read the memory of another process": """
class Vector(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
buffer = ctypes.create_string_buffer(8)
local, remote = Vector(ctypes.addressof(buffer), 8), Vector(ctypes.addressof(buffer), 8)
got = call("process_vm_readv", 1, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
if got >= 0 or got == -errno.EFAULT: escaped(got)
""",
    "take a descriptor from another process": """
handle = call("pidfd_open", 1, 0)
if handle >= 0 and call("pidfd_getfd", handle, 0, 0) >= 0: escaped("took")
""",
    "compare kernel objects": "if call('kcmp', 1, os.getpid(), 1, 0, 0) >= 0: escaped('compared')",
    "outlive the supervisor": """
signal_now = ctypes.c_int()
libc.prctl(1, signal.SIGKILL, 0, 0, 0)
for other in (0, signal.SIGTERM, signal.SIGUSR1):
    libc.prctl(1, other, 0, 0, 0)
    libc.prctl(2, ctypes.byref(signal_now), 0, 0, 0)
    if signal_now.value != signal.SIGKILL: escaped(signal_now.value)
""",
    "be spared when memory runs out": """
for value in (b"-1000", b"0", b"499"):
    handle = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    try: os.write(handle, value)
    except OSError: pass
if int(reads("/proc/self/oom_score_adj")) < 0: escaped(reads("/proc/self/oom_score_adj"))
""",
    "raise a limit": """
for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
    soft, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY: escaped(kind)
    try: resource.setrlimit(kind, (hard + 1, hard + 1))
    except (ValueError, OSError): pass
    if resource.getrlimit(kind)[1] > hard: escaped(kind)
""",
    "leave a core dump": """
if os.fork() == 0: os.abort()
_, status = os.wait()
if os.WCOREDUMP(status) or glob.glob("/job/core*"): escaped("dumped")
""",
    "hand a crash to a program of the host": """
both = (ctypes.c_long * 2)(0, 0)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
call("setrlimit", resource.RLIMIT_CORE, both)
call("prlimit64", 0, resource.RLIMIT_CORE, both, None)
if resource.getrlimit(resource.RLIMIT_CORE) != (1, 1): escaped(resource.getrlimit(resource.RLIMIT_CORE))
""",
    "get a better priority": """
for attempt in (lambda: os.setpriority(os.PRIO_PROCESS, 0, -10),
                lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))):
    try: attempt(); escaped("raised")
    except OSError: pass
""",
    # Privilege
    "become root": """
for attempt in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try: attempt(); escaped("became")
    except OSError: pass
""",
    "have capabilities": """
for line in (reads("/proc/self/status") or b"").decode().splitlines():
    name, _, value = line.partition(":")
    if name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") and int(value, 16): escaped(line)
    if name == "NoNewPrivs" and value.strip() != "1": escaped(line)
    if name == "Seccomp" and value.strip() != "2": escaped(line)
""",
    "leave the first process without a filter": """
if b"Seccomp:\\t2" not in reads("/proc/1/status"): escaped("no filter")
""",
    "take capabilities": """
header, data = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", 1 << 21, 1 << 21, 0, 0, 0, 0)
if call("capset", header, data) >= 0: escaped("took")
""",
    "run a setuid program": """
for program in ("/usr/bin/su", "/usr/bin/mount", "/usr/bin/passwd", "/usr/bin/newgrp", "/usr/bin/umount"):
    if os.path.exists(program) and not os.statvfs(program).f_flag & os.ST_NOSUID: escaped(program)
""",
    "map other users": """
for name in ("uid_map", "gid_map", "setgroups"):
    if writes("/proc/self/" + name): escaped(name)
""",
    # Namespaces and mounts
    "make a user namespace": "if call('unshare', 0x10000000) >= 0: escaped('made')",
    "make a mount namespace": "if call('unshare', 0x20000) >= 0: escaped('made')",
    "make a user namespace with clone": """
pid = call("clone", 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
if pid == 0: os._exit(0)
if pid > 0: escaped("made")
""",
    "make a user namespace with clone3": """
arguments = struct.pack("11Q", 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
pid = call("clone3", arguments, len(arguments))
if pid == 0: os._exit(0)
if pid > 0: escaped("made")
""",
    "enter another namespace": """
for name in glob.glob("/proc/1/ns/*"):
    try: handle = os.open(name, os.O_RDONLY)
    except OSError: continue
    if call("setns", handle, 0) >= 0: escaped(name)
""",
    "mount a file system": "if call('mount', b'none', b'/tmp', b'tmpfs', 0, 0) >= 0: escaped('mounted')",
    "remount the system writable": "if call('mount', b'none', b'/usr', 0, 4128, 0) >= 0: escaped('remounted')",
    "unmount what hides the host": """
for path in (b"/", b"/proc", b"/etc", b"/job"):
    if call("umount2", path, 2) >= 0: escaped(path)
""",
    "mount with the new interface": """
if call("fsopen", b"tmpfs", 0) >= 0: escaped("fsopen")
if call("open_tree", -100, b"/", 1) >= 0: escaped("open_tree")
if call("mount_setattr", -100, b"/usr", 0, bytes(32), 32) >= 0: escaped("mount_setattr")
""",
    "change the root": """
if call("pivot_root", b"/", b"/tmp") >= 0 or call("chroot", b"/tmp") >= 0: escaped("changed")
""",
    # Devices and kernel
    "make a device": """
for folder in ("/job", "/tmp", "/dev/shm"):
    try:
        os.mknod(folder + "/disk", 0o60600, os.makedev(254, 0))
        open(folder + "/disk", "rb"); escaped(folder)
    except OSError: pass
""",
    "open a device of somebody else": "if os.path.exists(target['device']): escaped('there')",
    "find devices": """
usual = {"null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "fd", "stdin", "stdout", "stderr",
         "core", "ptmx", "console", "mqueue"}
if set(os.listdir("/dev")) - usual: escaped(set(os.listdir("/dev")) - usual)
""",
    "read the kernel's memory or log": """
for name in ("/dev/kmsg", "/dev/mem", "/dev/kmem", "/proc/kcore", "/proc/kmsg"):
    try: os.read(os.open(name, os.O_RDONLY | os.O_NONBLOCK), 1); escaped(name)
    except OSError: pass
if call("syslog", 3, ctypes.create_string_buffer(100), 100) >= 0: escaped("syslog")
""",
    "change the kernel's settings": """
for name in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches",
             "/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger", "/proc/sys/kernel/modprobe"):
    if writes(name): escaped(name)
""",
    "change its own limits through cgroups": """
if glob.glob("/sys/fs/cgroup/*"): escaped("there")
if call("mount", b"none", b"/tmp", b"cgroup", 0, b"memory") >= 0: escaped("mounted")
""",
    "load a module or a kernel": """
if call("init_module", b"x", 1, b"") >= 0 or call("kexec_load", 0, 0, 0, 0) >= 0: escaped("loaded")
if call("init_module", b"x", 1, b"") == -errno.ENOEXEC: escaped("tried")
""",
    "reboot, swap or account": """
if call("reboot", 0xfee1dead, 672274793, 0, 0) >= 0: escaped("reboot")
if call("swapon", b"/job/x", 0) >= 0 or call("acct", b"/job/x") >= 0: escaped("swapon, acct")
""",
    "rename the host or change its time": """
if call("sethostname", b"x", 1) >= 0: escaped("named")
if call("clock_settime", 0, struct.pack("2q", 0, 0)) >= 0: escaped("set")
""",
    "use bpf": "if [call('bpf', n, bytes(120), 120) for n in (0, 5)] != [-1, -1]: escaped('used')",
    "use performance counters": """
event = struct.pack("IIQ", 1, 112, 0) + bytes(96)
if call("perf_event_open", event, 0, -1, -1, 0) >= 0: escaped("opened")
""",
    "use userfaultfd": """
if call("userfaultfd", 1) >= 0 or os.path.exists("/dev/userfaultfd"): escaped("opened")
""",
    "use io_uring": "if call('io_uring_setup', 8, ctypes.create_string_buffer(120)) >= 0: escaped('set up')",
    "take all asynchronous input and output of the machine": """
if call("io_setup", 128, ctypes.byref(ctypes.c_ulong())) >= 0: escaped("set up")
""",
    "use keyrings": """
if call("add_key", b"user", b"escape", b"x", 1, -4) >= 0: escaped("added")
if call("keyctl", 0, -4, 1) >= 0: escaped("keyctl")
if call("request_key", b"user", b"escape", 0, -4) not in (-errno.EPERM, -errno.ENOSYS): escaped("requested")
""",
    "change its personality": "if call('personality', 0x0040000) >= 0: escaped('changed')",
    "use ports of the machine": """
if column == 0 and (call("iopl", 3) >= 0 or call("ioperm", 0, 8, 1) >= 0): escaped("used")
""",
    "watch all files": "if call('fanotify_init', 0, 0) >= 0: escaped('watches')",
    "push characters into a terminal": """
import fcntl, pty
primary, secondary = pty.openpty()
for request in (0x5412, 0x541C):
    try: fcntl.ioctl(secondary, request, b"x"); escaped(hex(request))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EIO): raise
try: os.open("/dev/tty", os.O_RDWR); escaped("has a terminal")
except OSError: pass
""",
    # What all sandboxes of a node are made of
    "see mounts of other jobs or of the helper": """
for pid in ("1", "self"):
    text = (reads(f"/proc/{pid}/mountinfo") or b"").decode()
    if os.path.basename(target["victim_workspace"]) in text or "/tree" in text: escaped(text)
    if " shared:" in text or " master:" in text: escaped(text)
""",
    "starve the sandbox's first process": """
for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK, resource.RLIMIT_NOFILE,
             resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_SIGPENDING):
    resource.prlimit(1, kind, (0, 0))
os.setpriority(os.PRIO_PROCESS, 1, 19)
os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))
for _ in range(100):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: os._exit(0)
        os._exit(0)
    os.wait()
""",
    "hold keys of who started the node": "if (reads('/proc/keys') or b'').strip(): escaped(reads('/proc/keys'))",
    "climb out of a folder that it holds": """
for folder in ("/", "/job", "/usr", "/etc", "/dev", "/proc"):
    handle = os.open(folder, os.O_PATH)
    for _ in range(20): handle = os.open("..", os.O_PATH, dir_fd=handle)
    here, root = os.fstat(handle), os.stat("/")
    if (here.st_dev, here.st_ino) != (root.st_dev, root.st_ino): escaped(folder)
""",
    # Network
    "reach a port of the host": """
for port in target["ports"].split(","):
    for address in ("127.0.0.1", target["address"], "localhost"):
        if connects(socket.AF_INET, (address, int(port))): escaped(address)
""",
    "reach a port of the host over IPv6": """
for port in target["ports"].split(","):
    if connects(socket.AF_INET6, ("::1", int(port))): escaped(port)
""",
    "reach an abstract socket of the host": "if connects(1, '\\0' + target['abstract']): escaped('reached')",
    "reach the database": "if connects(socket.AF_UNIX, target['database']): escaped('reached')",
    "reach the metadata service": """
for address in ("169.254.169.254", "100.100.100.200"):
    if connects(socket.AF_INET, (address, 80)): escaped(address)
""",
    "reach the internet": """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try: s.sendto(b"x", ("8.8.8.8", 53)); escaped("sent")
except OSError: pass
""",
    "find an interface": """
names = [name for _, name in socket.if_nameindex()]
if set(names) - {"lo"}: escaped(names)
""",
    "make raw packets": """
for family, kind in ((socket.AF_INET, socket.SOCK_RAW), (17, socket.SOCK_RAW), (17, socket.SOCK_DGRAM)):
    try: socket.socket(family, kind, 1); escaped(family)
    except OSError: pass
""",
    "talk to the hypervisor": """
for family in (40, 38, 44, 21, 9, 4, 29, 31, 37):
    try: socket.socket(family, socket.SOCK_STREAM); escaped(family)
    except OSError: pass
    try: socket.socket(family, socket.SOCK_DGRAM); escaped(family)
    except OSError: pass
""",
    "configure the network": """
import fcntl
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try: fcntl.ioctl(s, 0x8914, struct.pack("16sh22x", b"lo", 0)); escaped("took lo down")
except OSError: pass
for protocol in (4, 9, 12, 15, 16):
    try: socket.socket(16, socket.SOCK_RAW, protocol); escaped(protocol)
    except OSError: pass
""",
    # Shared memory
    "share memory with others": """
key = int(target["shm_key"])
if call("shmget", key, 1, 0) >= 0: escaped("found")
if os.listdir("/dev/shm"): escaped(os.listdir("/dev/shm"))
if os.path.exists("/tmp/" + os.path.basename(target["state"])): escaped("host's /tmp")
""",
}

ESCAPES_WHERE_ROOT_MAKES_THE_SANDBOX = {
    # All sandboxes of a node share a room, and their first processes are copies of what makes them.
    "write to the places of environments": """
for folder in ("/checkpoints", os.path.dirname(target["python"])):
    if writes(folder + "/escape"): escaped(folder)
""",
    "look into the sandbox's first process": """
for name in ("environ", "maps", "smaps", "auxv", "stack", "syscall", "pagemap"):
    if reads("/proc/1/" + name): escaped(name)
for name in ("cwd", "root", "exe"):
    try: escaped(os.readlink("/proc/1/" + name))
    except OSError: pass
try: os.open("/proc/1/mem", os.O_RDWR); escaped("mem")
except OSError: pass
""",
    "see what other jobs of the node left": """
for folder in ("/tmp", "/dev/shm", "/run/secrets", "/checkpoints"):
    left = [name for name in os.listdir(folder) if not target["python"].startswith(os.path.join(folder, name))]
    if left: escaped(left)
if glob.glob("/dev/pts/[0-9]*"): escaped("terminals")
""",
    "change the times of what others see": """
for what in (0, "/dev/null", "/dev/full", "/etc/passwd", "/usr/bin/env", "/", "/dev", "/proc/1", target["python"]):
    try: os.utime(what); escaped(what)
    except OSError: pass
""",
    "leave something for other jobs": """
for folder, folders, files in os.walk("/"):
    skipped = ("/proc", "/usr", "/job", "/tmp", "/dev/shm", target["python"])
    folders[:] = [name for name in folders if os.path.join(folder, name) not in skipped]
    for attempt in (lambda: os.mkdir(folder + "/escape"), lambda: os.symlink("x", folder + "/escape"),
                    lambda: os.mkfifo(folder + "/escape"), lambda: os.chmod(folder, 0o777),
                    lambda: os.setxattr(folder, "user.escape", b"x"), lambda: os.rename(folder, folder + "x")):
        try: attempt(); escaped(folder)
        except OSError: pass
""",
    "change the sandbox's first process": """
for name in ("comm", "task/1/comm", "oom_score_adj", "clear_refs", "coredump_filter", "timerslack_ns", "sched",
             "autogroup", "mem", "uid_map", "projid_map", "attr/current"):
    if writes("/proc/1/" + name): escaped(name)
    if os.path.exists("/proc/1/" + name) and os.stat("/proc/1/" + name).st_uid == os.getuid(): escaped(name)
""",
    "say how it ended in the first process's place": """
for folder in ("/proc/1/fd", "/proc/self/fd", "/proc/1/map_files"):
    for number in range(64):
        path = f"{folder}/{number}"
        if folder == "/proc/self/fd" and number <= 2: continue
        try: os.write(os.open(path, os.O_WRONLY), b'{"exit-code": 42}'); escaped(path)
        except OSError: pass
""",
    "find the line over which its first process was told what to become": """
rows = (reads("/proc/net/unix") or b"").splitlines()[1:]
if rows: escaped(rows)
for folder in ("/proc/self/fd", "/proc/thread-self/fd"):
    for name in os.listdir(folder):
        try: kept = os.readlink(f"{folder}/{name}")
        except OSError: continue
        if kept.startswith(("socket:", "anon_inode:[pidfd]")): escaped(kept)
""",
    "inherit what its supervisor is": """
if os.getgroups() or os.getresuid() != (1000,) * 3 or os.getresgid() != (1000,) * 3: escaped("groups")
if os.getsid(0) != os.getpid() or os.getsid(1) != 1 or os.umask(0) != 0o022: escaped("session, umask")
if signal.pthread_sigmask(signal.SIG_BLOCK, ()): escaped("blocked signals")
if libc.prctl(27, 0, 0, 0, 0) != 0 or libc.prctl(3, 0, 0, 0, 0) != 1: escaped("securebits, dumpable")
""",
}
"""What an ordinary user's jobs can do, who are all that user: to themselves, and to what is his."""
