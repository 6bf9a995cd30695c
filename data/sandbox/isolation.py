"""The protections that hold a sandboxed program back: namespaces, a new root, Landlock, seccomp
and dropped privileges on Linux, and an audit hook on any system.

The server of the sandbox (fork_server.py) calls this code, and the process of a program calls it
directly before the program. A call raises OSError if the system does not permit it. Nothing is
tried again with less protection.
"""

import contextlib
import ctypes
import fcntl
import functools
import os
import signal
import struct
import sys

NOBODY = 65534
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
NAMESPACES = {
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
}
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18


def call(name: str, *arguments) -> int:
    """Call a function of the C library. The arguments are integers, texts, bytes, or None for NULL.

    Raises OSError if the result is negative.
    """
    values = []
    for argument in arguments:
        if isinstance(argument, int):
            argument = ctypes.c_ulong(argument)
        elif isinstance(argument, str):
            argument = argument.encode()
        values.append(argument)
    result = _function(name)(*values)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


@functools.cache
def _function(name: str):
    return getattr(ctypes.CDLL(None, use_errno=True), name)


def fork(function) -> int:
    """Run a function in a child process, and return the number of the process.

    The child ends with status 0, or with status 1 and the reason on stderr.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException as problem:
            os.write(2, f"{problem}\n".encode())
        finally:
            os._exit(status)
    return child


def attempt(function) -> str | None:
    """Try a step that cannot be undone, in a child. Returns None if it works, else the reason why
    it does not."""
    read, write = os.pipe()

    def report():
        os.dup2(write, 2)
        function()

    child = fork(report)
    os.close(write)
    with open(read, errors="replace") as file:
        reason = file.read().strip()
    return None if os.waitpid(child, 0)[1] == 0 else reason or "it ended in a signal"


# ---- namespaces ----------------------------------------------------------------------------------


def enter_namespaces() -> None:
    """Enter new namespaces for users, network, IPC, host name and control groups, and a new process
    namespace for the next children.

    The user of the trainer exists inside, and "nobody" if the trainer is root. Root without user
    namespaces (in some containers) makes the other namespaces directly.
    """
    process, (wait, go) = os.getpid(), os.pipe()

    def map_users():  # from outside: only there may root map nobody as well
        os.close(go)
        if os.read(wait, 1):
            _map_users(process)

    mapper, flags = fork(map_users), sum(NAMESPACES.values())
    try:
        call("unshare", CLONE_NEWUSER | flags)
        os.write(go, b"1")
    except OSError:
        call("unshare", flags)
    finally:
        os.close(go)
        os.close(wait)
        os.waitpid(mapper, 0)
    call("sethostname", "sandbox", len("sandbox"))


def _map_users(process: int) -> None:
    """Map the user and the group of a process in its new user namespace."""
    user, group = os.geteuid(), os.getegid()
    privileged = user == 0
    if not privileged:
        with open(f"/proc/{process}/setgroups", "w") as file:
            file.write("deny")
    for name, number in (("uid_map", user), ("gid_map", group)):
        lines = [f"{number} {number} 1"] + [f"{NOBODY} {NOBODY} 1"] * privileged
        try:
            with open(f"/proc/{process}/{name}", "w") as file:
                file.write("\n".join(lines))
        except PermissionError:  # root without the right to map others
            with open(f"/proc/{process}/{name}", "w") as file:
                file.write(lines[0])


def namespaces() -> dict[str, int]:
    """The namespaces of this process: name -> the number that the kernel gave it."""
    found = {}
    for name in NAMESPACES:
        with contextlib.suppress(OSError):
            found[name] = os.stat(f"/proc/self/ns/{name}").st_ino
    return found


def readable_places(packages: list[str]) -> list[str]:
    """The files and folders that a program may read: Python, the packages, shared libraries,
    harmless devices. Nothing else exists for the program."""
    libraries = [
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/etc/ld.so.cache",
        "/usr/share/zoneinfo",
    ]
    python = [*sys.path, *(os.path.join(sys.base_prefix, name) for name in ("lib", "lib64"))]
    devices = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"]
    return sorted(
        {place for place in libraries + python + packages + devices if os.path.exists(place)}
    )


def enter_root(
    folder: str, places: list[str], scratch: str, scratch_bytes: int, scratch_files: int
) -> None:
    """Enter a new mount namespace. Its root has only `places`, which are read-only, and `scratch`,
    which is writable, limited, and in memory.

    folder: an empty folder on which the root is built. The old root is detached, and no path leads
    to it.
    """
    call("unshare", CLONE_NEWNS)
    call("mount", None, "/", None, MS_REC | MS_PRIVATE, None)
    call("mount", "tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    shown: list[str] = []
    for place in places:  # sorted: a folder comes before what lies in it
        if place.startswith(tuple(each + os.sep for each in shown)):
            continue
        inside = folder + place
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if (
            os.path.islink(place)
            and not os.path.isabs(os.readlink(place))
            and place.count(os.sep) == 1
        ):
            os.symlink(os.readlink(place), inside)  # /lib -> usr/lib
            continue
        if os.path.isdir(place):
            os.mkdir(inside)
        else:
            os.close(os.open(inside, os.O_CREAT))
        call("mount", place, inside, None, MS_BIND | MS_REC, None)
        shown.append(place)
    os.makedirs(folder + scratch)
    os.chdir(folder)
    call("pivot_root", ".", ".")
    call("umount2", ".", 2)  # MNT_DETACH
    os.chdir("/")
    attributes = struct.pack("QQQQ", 1 | 2, 0, 0, 0)  # MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID
    call(
        "syscall", 442, -100, "/", 0x8000, attributes, len(attributes)
    )  # mount_setattr(AT_FDCWD, "/", AT_RECURSIVE)
    options = f"size={scratch_bytes},nr_inodes={scratch_files},mode=755"
    call("mount", "tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)


# ---- Landlock ------------------------------------------------------------------------------------


def landlock_rules(places: list[str], scratch: str) -> int:
    """Make a Landlock ruleset: read `places`, change `scratch`, execute nothing, no TCP, no
    signals and no abstract sockets to the outside. Returns the descriptor, for `landlock`."""
    version = call(
        "syscall", 444, None, 0, 1
    )  # landlock_create_ruleset(LANDLOCK_CREATE_RULESET_VERSION)
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    attributes = struct.pack("QQQ", every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    rules = call("syscall", 444, attributes, len(attributes), 0)
    read_file, read_folder = 1 << 2, 1 << 3
    special = (
        1 << 0 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11
    )  # execute; make devices, sockets and pipes
    for place in [*places, scratch]:
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
        access = read_file | (read_folder if os.path.isdir(place) else 0)
        if place == scratch:
            access = every & ~special
        if place.startswith("/dev/"):
            access |= 1 << 1  # write
        rule = struct.pack("=Qi", access, descriptor)
        call("syscall", 445, rules, 1, rule, 0)  # landlock_add_rule(LANDLOCK_RULE_PATH_BENEATH)
        os.close(descriptor)
    high = fcntl.fcntl(
        rules, fcntl.F_DUPFD_CLOEXEC, 10
    )  # out of the way of descriptors 0 to 3 of programs
    os.close(rules)
    return high


def landlock(rules: int) -> None:
    """Apply a ruleset of `landlock_rules` to this process."""
    call("syscall", 446, rules, 0)  # landlock_restrict_self


# ---- privileges ----------------------------------------------------------------------------------


def drop_privileges(user: int | None) -> None:
    """Become `user` (None: stay the same user) without capabilities and without a way to gain any.
    The process cannot be traced or dumped."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    call("prctl", 1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG: die with the server
    call("prctl", 4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call(
        "capset", struct.pack("Ii", 0x20080522, 0), bytes(24)
    )  # effective, permitted and inheritable: none


def has_privileges() -> bool:
    """Whether this process is root, holds a capability, or could gain privileges."""
    sets = ctypes.create_string_buffer(24)
    call("capget", struct.pack("Ii", 0x20080522, 0), sets)
    return 0 in os.getresuid() or any(sets.raw) or call("prctl", 39, 0, 0, 0, 0) != 1


# ---- seccomp -------------------------------------------------------------------------------------

# System calls a program may use: name, its number on x86-64, its number on arm64.
_ALLOWED = """
read 0/63 write 1/64 close 3/57 open 2/- stat 4/- fstat 5/80 lstat 6/- newfstatat 262/79 statx
332/291 poll 7/- ppoll 271/73 select 23/- pselect6 270/72 lseek 8/62 mmap 9/222 mprotect 10/226
munmap 11/215 mremap 25/216 msync 26/227 mincore 27/232 madvise 28/233 brk 12/214 rt_sigaction
13/134 rt_sigprocmask 14/135 rt_sigreturn 15/139 rt_sigpending 127/136 rt_sigtimedwait 128/137
rt_sigsuspend 130/133 sigaltstack 131/132 restart_syscall 219/128 pause 34/- pread64 17/67 pwrite64
18/68 readv 19/65 writev 20/66 preadv 295/69 pwritev 296/70 preadv2 327/286 pwritev2 328/287 access
21/- faccessat 269/48 faccessat2 439/439 pipe 22/- pipe2 293/59 sched_yield 24/124 dup 32/23 dup2
33/- dup3 292/24 nanosleep 35/101 clock_nanosleep 230/115 clock_gettime 228/113 clock_getres
229/114 gettimeofday 96/169 times 100/153 getitimer 36/102 setitimer 38/103 alarm 37/- getpid
39/172 getppid 110/173 gettid 186/178 getuid 102/174 getgid 104/176 geteuid 107/175 getegid 108/177
getresuid 118/148 getresgid 120/150 getgroups 115/158 getpgrp 111/- getpgid 121/155 getsid 124/156
getcpu 309/168 getrandom 318/278 exit 60/93 exit_group 231/94 wait4 61/260 waitid 247/95 uname
63/160 sysinfo 99/179 getrlimit 97/163 getrusage 98/165 sched_getaffinity 204/123 arch_prctl 158/-
set_tid_address 218/96 set_robust_list 273/99 get_robust_list 274/100 rseq 334/293 futex 202/98
flock 73/32 fsync 74/82 fdatasync 75/83 truncate 76/45 ftruncate 77/46 fallocate 285/47 fadvise64
221/223 sendfile 40/71 copy_file_range 326/285 close_range 436/436 getdents 78/- getdents64 217/61
getcwd 79/17 chdir 80/49 fchdir 81/50 creat 85/- openat 257/56 rename 82/- renameat 264/38
renameat2 316/276 mkdir 83/- mkdirat 258/34 rmdir 84/- link 86/- linkat 265/37 unlink 87/- unlinkat
263/35 symlink 88/- symlinkat 266/36 readlink 89/- readlinkat 267/78 chmod 90/- fchmod 91/52
fchmodat 268/53 umask 95/166 utimensat 280/88 statfs 137/43 fstatfs 138/44 epoll_create 213/-
epoll_create1 291/20 epoll_ctl 233/21 epoll_wait 232/- epoll_pwait 281/22 eventfd 284/- eventfd2
290/19
"""
# Allowed with some arguments only. clone3 and openat2 hide theirs in memory: "not implemented",
# libc uses others then.
_LOOKED_AT = """
clone 56/220 fcntl 72/25 ioctl 16/29 prlimit64 302/261 prctl 157/167 clone3 435/435 openat2 437/437
"""
_LAST = 450  # later system calls are "not implemented", which libc can handle
# machine -> (column above, the kernel's number of the machine)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def seccomp_filter(machine: str) -> bytes:
    """A filter of system calls, as a classic BPF program.

    The program reads the number of the system call, the machine and the arguments. It is a search
    tree over ranges of numbers. Everything that is not listed is refused: new processes, exec,
    sockets, signals, tracing, raising limits, mounts, namespaces, keys, shared memory, memory
    files, io_uring, bpf. Raises OSError for a machine that is not listed.
    """
    if machine not in _MACHINES or sys.maxsize < 2**32:
        raise OSError(f"no list of system calls for {machine}")
    column, audit = _MACHINES[machine]
    load, equal, at_least, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06  # opcodes
    allow = [(give, 0, 0, 0x7FFF0000)]
    refuse = [(give, 0, 0, 0x00050001)]
    unknown = [(give, 0, 0, 0x00050026)]

    def only(argument: int, values: tuple[int, ...]) -> list:
        """Allow the call only with these values in the low half of an argument."""
        tests = [(equal, len(values) - i, 0, value) for i, value in enumerate(values)]
        return [(load, 0, 0, 16 + 8 * argument), *tests, *refuse, *allow]

    new_namespaces = CLONE_NEWUSER | CLONE_NEWNS | sum(NAMESPACES.values())
    special = {
        # threads, but no processes and no namespaces
        "clone": [
            (load, 0, 0, 16),
            (bits, 0, 1, 0x10000),
            (bits, 0, 1, new_namespaces),
            *refuse,
            *allow,
        ],
        # not F_SETOWN and F_SETSIG, which send signals
        "fcntl": only(1, (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)),
        # whether it is a terminal, the size of the terminal, blocking
        "ioctl": only(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
        # read limits, but do not set them
        "prlimit64": [
            (load, 0, 0, 32),
            (equal, 0, 2, 0),
            (load, 0, 0, 36),
            (equal, 1, 0, 0),
            *refuse,
            *allow,
        ],
        "prctl": only(0, (15,)),  # name a thread
        "clone3": unknown,
        "openat2": unknown,
    }
    actions = [refuse] * (_LAST + 1) + [unknown]
    for listed, action in ((_ALLOWED, allow), (_LOOKED_AT, None)):
        words = listed.split()
        for name, numbers in zip(words[::2], words[1::2], strict=True):
            number = numbers.split("/")[column]
            if number != "-":
                actions[int(number)] = action or special[name]
    starts = [n for n in range(len(actions)) if n == 0 or actions[n] is not actions[n - 1]]

    def tree(first: int, last: int) -> list:
        if first == last:
            return actions[starts[first]]
        middle = (first + last + 1) // 2
        left, right = tree(first, middle - 1), tree(middle, last)
        jump = [(at_least, len(left), 0, starts[middle])]
        if len(left) >= 256:  # a conditional jump has 8 bits
            jump = [(at_least, 0, 1, starts[middle]), (0x05, 0, 0, len(left))]
        return jump + left + right

    code = [(load, 0, 0, 4), (equal, 1, 0, audit), *refuse, (load, 0, 0, 0)]
    code += [(at_least, 0, 1, 0x40000000), *refuse]  # x32 has other numbers
    code += tree(0, len(starts) - 1)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def apply_seccomp(program: bytes) -> None:
    """Apply the filter to this process, forever. Needs PR_SET_NO_NEW_PRIVS."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    call("prctl", 22, 2, header, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


# ---- the audit hook ------------------------------------------------------------------------------

_REFUSED = (
    "socket.",
    "subprocess.",
    "ctypes.",
    "pty.",
    "resource.setrlimit",
    "resource.prlimit",
    "os.kill",
    "signal.pthread_kill",
    "os.fork",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "sys.addaudithook",
)
_CHANGING = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.chflags",
    "os.setxattr",
    "os.removexattr",
    "os.mkfifo",
    "os.mknod",
)


def audit_hook(folder: str, readable: tuple[str, ...]):
    """An audit hook for any system. It refuses sockets, processes, signals, ctypes, writing outside
    `folder`, and reading outside `folder` and `readable`, with a PermissionError. Python code that
    tries hard can bypass an audit hook."""
    writable = (folder + os.sep,)
    readable += writable
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    # The program must not be able to replace these.
    realpath, fsdecode, sep = os.path.realpath, os.fsdecode, os.sep
    devices = (os.devnull, "/dev/urandom")

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not allowed in the sandbox")
        if event == "open":
            allowed = writable if arguments[2] & writing else readable
            paths = arguments[:1]
        elif event in ("os.listdir", "os.scandir"):
            allowed, paths = readable, arguments[:1]
        elif event in _CHANGING:
            last = arguments[-1] if arguments else None
            has_folder = isinstance(last, int) and last >= 0
            if has_folder and event not in ("os.chmod", "os.truncate"):
                raise PermissionError(f"{event} with dir_fd is not allowed in the sandbox")
            allowed, paths = writable, [a for a in arguments if isinstance(a, str | bytes)]
        else:
            return
        for path in paths:
            if isinstance(path, str | bytes) and path not in devices:
                if not (realpath(fsdecode(path)) + sep).startswith(allowed):
                    raise PermissionError(f"{fsdecode(path)}: outside the sandbox")

    return hook
