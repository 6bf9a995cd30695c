"""Programs that attack. Each is contained, and afterwards the caller and the next program are as
before.

Every attack runs without the audit hook, so that it tests the kernel's protections. Attacks that
do more than break a limit also run with all protections. A program prints ESCAPED if it was able
to do what it must not do.
"""

import os
import platform
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data.sandbox import isolation
from data.sandbox.sandbox import Result, Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
x86 = platform.machine() == "x86_64"

HELP = """
import ctypes, mmap, os, signal, sys, threading, time
def tries(*actions):
    for action in actions:
        try:
            result = action()
        except (OSError, RuntimeError, ValueError, AttributeError, ImportError) as error:
            continue
        if result is None or not isinstance(result, int) or result >= 0:
            print("ESCAPED", action.__code__.co_firstlineno, repr(result)[:200])
def libc(name, *arguments):
    return lambda: getattr(ctypes.CDLL(None), name)(*arguments)
def raw(*arguments):
    return libc("syscall", *map(ctypes.c_long, arguments))
"""

# name: (the statuses with which it may end, the program)
ATTACKS = {
    # processes, time and memory
    "fork bomb": ("ok", "for _ in range(200): tries(os.fork, libc('fork'))"),
    "fork by raw clone": (
        "ok",
        f"tries(raw({56 if x86 else 220}, 17, 0, 0, 0, 0), raw(435, 0, 0))",
    ),
    "double fork daemon": ("ok", "tries(lambda: os.fork() or os.setsid() or os.fork())"),
    "thread bomb": (
        "ok error memory",
        """
threading.stack_size(32768)
count = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
        count += 1
        if count > 64: print("ESCAPED"); break
except RuntimeError: pass
""",
    ),
    "memory bomb": ("memory error", "x = []\nwhile True: x.append(bytearray(10**7))"),
    "memory by mmap": (
        "ok",
        "x = []\ntries(lambda: [x.append(mmap.mmap(-1, 2**26)) for _ in range(40)])",
    ),
    "memory by raw mmap": ("ok", f"tries(raw({9 if x86 else 222}, 0, 2**34, 3, 0x22, -1, 0))"),
    "memory in memory files": (
        "ok",
        "tries(lambda: os.memfd_create('x'), libc('memfd_create', b'x', 0))",
    ),
    "memory shared with nobody": (
        "ok",
        "tries(libc('shmget', 0, 2**28, 0o1600), libc('msgget', 0, 0o1600))",
    ),
    "endless loop": ("timeout", "while True: pass"),
    "endless loop without signals": (
        "timeout",
        """
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True:
    try:
        while True: pass
    except BaseException: pass
""",
    ),
    "loops in many threads": (
        "timeout",
        """
def loop():
    while True: pass
for _ in range(8): threading.Thread(target=loop).start()
loop()
""",
    ),
    "catastrophic regular expression": (
        "timeout",
        "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')",
    ),
    "huge power": ("timeout memory", "print(len(str(9 ** 9 ** 9)))"),
    "deep recursion": ("error memory timeout", "sys.setrecursionlimit(10**9)\ndef f(): f()\nf()"),
    "overflow of the C stack": (
        "error",
        """
sys.setrecursionlimit(10**9)
x, y = [], []
for _ in range(10**5): x, y = [x], [y]
x == y
""",
    ),
    "crash": ("error", "ctypes.string_at(0)"),
    "abort with a core dump": ("error", "os.abort()"),
    # output and the protocol
    "endless output": ("output", "while True: os.write(1, b'x' * 65536)"),
    "endless error report": ("error", "while True: os.write(3, b'x' * 65536)"),
    "writes to every descriptor": (
        "error",
        """
import json, struct
message = json.dumps({"status": "ok", "stdout": "ESCAPED", "error": ""}).encode()
for descriptor in range(3, 2000):
    try:
        os.write(descriptor, struct.pack("<I", len(message)) + message)
        if descriptor > 3: print("ESCAPED", descriptor)
    except OSError: pass
""",
    ),
    "closes every descriptor": ("ok error", "os.closerange(0, 2000)"),
    "ends before its end": ("error", "print('right')\nsys.stdout.flush()\nos._exit(0)"),
    "output after the end": (
        "ok",
        """
import atexit
atexit.register(os.write, 1, b"ESCAPED")
def late():
    while True:
        time.sleep(0.05)
        os.write(1, b"ESCAPED")
threading.Thread(target=late).start()
""",
    ),
    "many descriptors": ("error", "files = [open('f', 'w') for _ in range(10**5)]"),
    # files
    "reads the trainer's files": (
        "ok",
        """
hidden = [SECRET, PROJECT, os.path.dirname(SECRET), HOME + '/.bashrc', '/etc/passwd', '/etc/shadow', '/etc/hosts',
          '/proc', '/proc/1/environ', '/proc/self/environ', '/proc/self/mem', '/sys',
          '/dev/mem', '/dev/shm', '/var', '/bin/sh', '/usr/bin']
for place in hidden:
    tries(lambda: open(place).read(1), lambda: os.listdir(place), lambda: os.stat(place) and None,
          libc('open', place.encode(), 0), lambda: os.chdir(place))
""",
    ),
    "reads by way of a link": (
        "ok",
        """
tries(lambda: os.symlink(SECRET, 'link') or open('link').read(), lambda: os.link(SECRET, 'hard'),
      lambda: os.symlink('/' + '../' * 9 + SECRET, 'up') or open('up').read(),
      lambda: os.symlink(os.path.dirname(SECRET), 'd') or os.listdir('d'), libc('link', SECRET.encode(), b'l'))
""",
    ),
    "writes outside scratch": (
        "ok",
        """
libraries = [os.path.dirname(os.__file__), '/usr/lib', '/', '/dev', '/tmp', '..', os.path.dirname(SECRET)]
for folder in libraries:
    name = os.path.join(folder, 'escaped')
    tries(lambda: open(name, 'w'), lambda: os.mkdir(name), lambda: os.symlink('x', name),
          libc('creat', name.encode(), 0o666), libc('mkdir', name.encode(), 0o777))
tries(lambda: os.truncate(os.__file__, 0), lambda: os.remove(os.__file__), lambda: os.chmod(os.__file__, 0o777),
      lambda: os.rename(os.__file__, 'os.py'), lambda: os.chmod('/dev/null', 0), lambda: os.utime(os.__file__))
""",
    ),
    "huge file": (
        "ok",
        """
def grow():
    with open('f', 'wb') as file:
        for _ in range(64): file.write(bytes(2**20))
def sparse():
    with open('g', 'wb') as file: file.seek(2**40); file.write(b'x')
tries(grow, sparse, lambda: os.truncate('f', 2**40), lambda: os.posix_fallocate(os.open('h', 65, 0o600), 0, 2**30))
""",
    ),
    "fills scratch": (
        "ok",
        """
def fill():
    for i in range(8):
        with open(f'f{i}', 'wb') as file: file.write(bytes(15 * 2**20))
tries(fill, lambda: [open(f'x{i}', 'w').close() for i in range(5000)] and None)
""",
    ),
    "devices": (
        "ok",
        "tries(lambda: os.mknod('d', 0o60666, 0x101), libc('mknod', b'd', 0o20666, 0x101), "
        "lambda: os.mkfifo('p'), lambda: open('/dev/vda', 'rb'), lambda: open('/dev/kmsg'))",
    ),
    # network
    "network": (
        "ok",
        """
import socket
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(b'ESCAPED', ('127.0.0.1', PORT)); print('ESCAPED')
def unix(path):
    s = socket.socket(socket.AF_UNIX); s.connect(path); print('ESCAPED')
tries(lambda: socket.create_connection(('127.0.0.1', PORT), 1), udp, lambda: unix(SOCKET), lambda: unix(ABSTRACT),
      lambda: socket.socketpair(), libc('socket', 2, 1, 0), libc('socket', 16, 3, 0), libc('socket', 1, 1, 0))
""",
    ),
    # other processes
    "signals": (
        "ok",
        """
parent = os.getppid()
tries(lambda: os.kill(parent, 9), lambda: os.kill(-1, 9), lambda: os.killpg(0, 9), libc('kill', -1, 9),
      libc('kill', parent, 9), libc('kill', os.getpid(), 19), libc('tgkill', parent, parent, 9), libc('killpg', 0, 9),
      libc('sigqueue', parent, 9, 0), raw(434, parent, 0), raw(424, 0, 9, 0, 0), lambda: os.pidfd_open(parent))
""",
    ),
    "signals by file events": (
        "ok",
        """
import fcntl
r, w = os.pipe()
tries(lambda: fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid()), lambda: fcntl.fcntl(r, fcntl.F_SETSIG, 9))
""",
    ),
    "traces": (
        "ok",
        """
parent = os.getppid()
tries(libc('ptrace', 0, 0, 0, 0), libc('ptrace', 16, parent, 0, 0), raw(438, parent, 0, 0),
      libc('process_vm_readv', parent, 0, 0, 0, 0, 0), libc('process_vm_writev', parent, 0, 0, 0, 0, 0))
""",
    ),
    "other programs": (
        "ok",
        """
import subprocess
arguments = (ctypes.c_char_p * 2)(b'/bin/sh', None)
tries(lambda: os.execv('/bin/sh', ['sh']), lambda: os.execv(sys.executable, ['python']),
      lambda: subprocess.run(['true']).returncode, lambda: -os.system('true'), lambda: os.posix_spawn('/x', ['x'], {}),
      libc('execve', b'/bin/sh', arguments, None), lambda: -ctypes.CDLL(None).system(b'true'))
""",
    ),
    "pickle": (
        "error",
        "import pickle\npickle.loads(b\"cos\\nexecv\\n(S'/bin/sh'\\n(lS'sh'\\natR.\")",
    ),
    # rights
    "raises limits": (
        "ok",
        """
import resource
for number in range(16):
    soft, hard = resource.getrlimit(number)
    if hard != -1:
        tries(lambda: resource.setrlimit(number, (-1, -1)), lambda: resource.prlimit(0, number, (-1, -1)),
              libc('setrlimit', number, (ctypes.c_ulong * 2)(2**64 - 1, 2**64 - 1)))
""",
    ),
    "gains rights": (
        "ok",
        """
tries(lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setresuid(0, 0, 0), libc('setuid', 0), libc('setgid', 0),
      libc('setgroups', 0, None), libc('prctl', 38, 0, 0, 0, 0), libc('prctl', 4, 1, 0, 0, 0), lambda: os.nice(-5),
      lambda: os.sched_setaffinity(0, {0}), libc('personality', 0x40000), lambda: os.setpriority(0, 0, -5))
""",
    ),
    "namespaces and mounts": (
        "ok",
        """
tries(libc('unshare', 0x10000000), libc('unshare', 0x00020000), libc('setns', 0, 0), libc('chroot', b'.'),
      libc('pivot_root', b'.', b'.'), libc('mount', b'none', b'.', b'tmpfs', 0, None), libc('umount2', b'/', 2),
      lambda: os.chroot('.'), raw(428, -100, 0, 0), raw(429, 0, 0, 0, 0, 0), raw(430, 0, 0), raw(431, 0, 0, 0, 0, 0),
      raw(432, 0, 0, 0), raw(442, -100, 0, 0, 0, 0))
""",
    ),
    "the kernel's corners": (
        "ok",
        """
numbers = {'x86_64': (321, 298, 323, 248, 249, 250, 246, 304, 175, 313, 135, 103, 167, 169, 164, 159, 253, 317, 157),
           'aarch64': (280, 241, 282, 217, 218, 219, 104, 265, 105, 273, 92, 116, 224, 142, 170, 171, 26, 277, 167)}
for number in numbers[os.uname().machine] + (425, 426, 427, 444, 446, 447, 448):
    tries(raw(number, 0, 0, 0, 0, 0))
""",
    ),
    "machine code with the old calling convention": (
        "ok error",
        """
page = mmap.mmap(-1, 4096, prot=7)
page.write(b'\\xb8\\x02\\0\\0\\0\\xcd\\x80\\xc3')  # mov eax, 2 (fork); int 0x80; ret
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
tries(ctypes.CFUNCTYPE(ctypes.c_int)(address).__call__ if os.uname().machine == 'x86_64' else lambda: -1)
""",
    ),
    "takes the hook apart": (
        "ok",
        """
import gc
for function in gc.get_objects():
    if getattr(function, '__name__', '') == 'hook':
        function.__globals__.update(_REFUSED=(), _CHANGING=())
        for cell in function.__closure__ or ():
            if isinstance(cell.cell_contents, tuple): cell.cell_contents = ('/',)
tries(lambda: open(SECRET).read(), lambda: os.listdir('/root'), lambda: open('/escaped', 'w'), os.fork,
      lambda: __import__('socket').socket(), lambda: open('/etc/passwd'))
""",
    ),
    # the next program
    "changes the interpreter": (
        "ok error",
        """
import builtins, math, random, sympy
builtins.print = builtins.len = lambda *a: 1 / 0
sympy.solve = math.sqrt = random.random = None
sys.modules.clear()
sys.setrecursionlimit(50)
del sys.stdout
""",
    ),
    "traces the interpreter": (
        "ok error memory",
        """
def trace(*arguments): raise MemoryError
sys.setprofile(trace); sys.settrace(trace); threading.settrace(trace)
os.path.join('a', 'b')
""",
    ),
    "leaves deep folders": (
        "ok error",
        "for _ in range(900): os.mkdir('d' * 20); os.chdir('d' * 20)",
    ),
    "leaves folders that nobody may enter": (
        "ok error",
        """
os.makedirs('a/b/c'); open('a/b/f', 'w')
for folder in ('a/b', 'a', '.'): os.chmod(folder, 0)
""",
    ),
    "leaves odd names": (
        "ok error",
        """
os.makedirs('.0/.1'); os.makedirs('.1/.0/.2'); os.mkdir('x'); open('x/y', 'w'); open(b'\\xff\\n', 'w')
os.symlink('loop', 'loop'); os.symlink('/', 'root')
""",
    ),
}

CHECK = """
import math, os, random, sympy, sys
x = sympy.symbols('x')
print(sympy.solve(x**2 - 4), math.sqrt(4), random.random(), os.listdir('.'), sorted(os.environ),
      sys.getrecursionlimit(), sys.gettrace(), sys.argv, len(os.listdir('..')) if not HOOK else 1)
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A secret file and listening sockets of the trainer. Programs know them as constants."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "test_set.jsonl").write_text("hunter2")
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(tcp.getsockname())
    unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    unix.bind(str(folder / "s"))
    abstract.bind(f"\0sandbox-test-{os.getpid()}")
    listeners = [tcp, unix, abstract]
    for listener in listeners:
        listener.listen()
        listener.setblocking(False)
    udp.setblocking(False)
    constants = {
        "SECRET": str(folder / "test_set.jsonl"),
        "PROJECT": str(Path(__file__).resolve()),
        "HOME": str(Path.home()),
        "PORT": tcp.getsockname()[1],
        "SOCKET": str(folder / "s"),
        "ABSTRACT": f"\0sandbox-test-{os.getpid()}",
    }
    yield folder, "".join(f"{name} = {value!r}\n" for name, value in constants.items())
    for listener in listeners:
        with pytest.raises(BlockingIOError):  # nobody connected
            listener.accept()
        listener.close()
    with pytest.raises(BlockingIOError):
        udp.recv(1)
    udp.close()
    assert sorted(os.listdir(folder)) == ["s", "test_set.jsonl"]
    assert (folder / "test_set.jsonl").read_text() == "hunter2"


def strict():
    """Where namespaces are permitted, nothing may be missing."""
    if reason := isolation.attempt(isolation.enter_namespaces):
        pytest.skip(f"namespaces are not permitted here: {reason}")
    return Sandbox(workers=1, cpu_seconds=1, memory_mb=256, mode="strict")


@pytest.fixture(scope="module")
def full():
    with strict() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def bare(full):
    """All protections except the audit hook."""
    with Sandbox(workers=1, cpu_seconds=1, memory_mb=256, _without=("hook",)) as sandbox:
        assert "hook" not in sandbox.isolation and "files" in sandbox.isolation
        yield sandbox


@pytest.mark.parametrize(
    ("kind", "name"),
    [("bare", name) for name in ATTACKS]
    + [("full", name) for name, (statuses, _) in ATTACKS.items() if "timeout" not in statuses],
)
def test_attack(kind, name, request, outside):
    sandbox = request.getfixturevalue(kind)
    server = sandbox._servers[0].process
    check = f"HOOK = {kind == 'full'}\n{CHECK}"
    before = sandbox.run(check)
    assert before.status == "ok", before
    statuses, code = ATTACKS[name]
    start = time.monotonic()
    result = sandbox.run(outside[1] + HELP + code)
    if kind == "full" and "ctypes" in result.error:  # the hook ended it
        assert "not allowed in the sandbox" in result.error
    else:
        assert result.status in statuses.split(), result
    assert "ESCAPED" not in result.stdout + result.error, result
    assert len(result.stdout) <= 10_000 and len(result.error) <= 10_000
    assert time.monotonic() - start < 20
    assert sandbox.run(check) == before
    assert (
        sandbox._servers[0].process is server and server.poll() is None
    )  # it did not have to start again


# name -> (protections that are left out, attacks that are still contained)
LESS = {
    "no namespaces": (
        ("namespaces", "hook"),
        [
            "reads by way of a link",
            "network",
            "signals",
            "traces",
            "other programs",
            "fork bomb",
            "raises limits",
        ],
    ),
    "no namespaces, no Landlock": (
        ("namespaces", "landlock"),
        [
            "reads by way of a link",
            "network",
            "signals",
            "fork bomb",
            "leaves odd names",
            "leaves deep folders",
        ],
    ),
    "no seccomp": (
        ("seccomp", "hook"),
        ["reads the trainer's files", "reads by way of a link", "devices"],
    ),
}


@pytest.mark.parametrize("kind", LESS)
def test_attack_with_less_protection(kind, outside):
    without, names = LESS[kind]
    with Sandbox(workers=1, cpu_seconds=1, memory_mb=256, _without=without) as sandbox:
        assert not {"files", "hook"} <= set(sandbox.isolation)
        server = sandbox._servers[0].process
        for name in names:
            result = sandbox.run(outside[1] + HELP + ATTACKS[name][1])
            assert "ESCAPED" not in result.stdout, (name, result)
            assert sandbox.run("import os\nprint(os.listdir('.'))") == Result("ok", "[]\n", "")
        assert sandbox._servers[0].process is server


def test_what_a_program_leaves_running_ends_with_it(full):
    """By the process namespace alone: without the filter and the hook a program can fork."""
    daemon = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            print("daemon", flush=True)
            time.sleep(1000)
        os._exit(0)
for _ in range(3): os.wait()
time.sleep(0.3)
print(sorted(os.environ))
"""
    with Sandbox(workers=1, cpu_seconds=1, _without=("seccomp", "hook", "landlock")) as sandbox:
        for _ in range(2):
            assert sandbox.run(daemon).stdout.count("daemon") == 3
            assert sandbox.run("import os\nprint(os.getpid() > 1)").stdout == "True\n"
            deadline = time.monotonic() + 5
            while (
                len(found := _descendants(sandbox._servers[0].process.pid)) > 1
                and time.monotonic() < deadline
            ):
                time.sleep(0.02)
            assert len(found) == 1  # the server


def _descendants(process):
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return found + [one for child in found for one in _descendants(child)]


def test_programs_that_run_at_once_do_not_see_one_another(full):
    writer = (
        "import os, time\nopen('mine', 'w').write('hunter2')\ntime.sleep(2)\nprint(os.listdir('.'))"
    )
    reader = """
import os, time
time.sleep(0.5)
for folder, _, names in os.walk('/'):
    if 'mine' in names: print('ESCAPED', folder)
for number in range(2, 3000):
    try: os.kill(number, 0); print('ESCAPED', number) if number != os.getpid() else None
    except OSError: pass
print(os.listdir('.'))
"""
    with Sandbox(workers=2, cpu_seconds=5, _without=("hook", "seccomp", "landlock")) as sandbox:
        with ThreadPoolExecutor(2) as threads:
            first, second = threads.submit(sandbox.run, writer), threads.submit(sandbox.run, reader)
        assert first.result().stdout == "['mine']\n"
        assert second.result().stdout == "[]\n"


def test_core_of_the_work_goes_on_beside_an_attack():
    """While a worker is attacked, the other worker gives right results in order."""
    with Sandbox(workers=2, cpu_seconds=1, memory_mb=256) as sandbox:
        attack = threading.Thread(target=sandbox.run, args=("while True: bytearray(10**8)",))
        attack.start()
        results = sandbox.run_many([f"print({i} ** 2)" for i in range(20)])
        attack.join()
    assert [result.stdout for result in results] == [f"{i**2}\n" for i in range(20)]
