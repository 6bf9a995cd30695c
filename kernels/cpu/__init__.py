"""Accelerators in C++ for CPUs: compiled at first use by this machine's compiler, and kept for later runs."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from ctypes import c_float, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
SOURCES = [FOLDER / f"{name}.cpp" for name in ("attention", "block", "decoder")]
HEADER = FOLDER / "common.h"
FLAGS = "-std=c++17 -O3 -march=native -fno-math-errno -shared -fPIC -Wno-unknown-pragmas".split()


def compiler() -> str | None:
    """The C++ compiler of this machine: $CXX, or the first of the usual names."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    return None


@functools.cache
def native() -> ctypes.CDLL | None:
    """The C++ compiled for this processor, from the cache of an earlier run where there is one.

    None, after a line on standard error that says why, where it cannot be had.
    """
    cxx = compiler()
    if cxx is None:
        print(
            "no C++ compiler (g++, clang++): PyTorch computes everything, slower", file=sys.stderr
        )
        return None
    # What the compiler says of the processor belongs to the name: a home directory may serve several machines.
    target = subprocess.run(
        [cxx, "-march=native", "-dM", "-E", "-x", "c++", os.devnull], capture_output=True
    ).stdout
    parts = [*(file.read_bytes() for file in (*SOURCES, HEADER)), target, " ".join(FLAGS).encode()]
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepseekmath"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="deepseekmath"))
    path = folder / f"cpu_{name}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(
            dir=folder
        ) as made:  # then moved: another process may be at it too
            for threads in (["-fopenmp"], []):  # Apple's compiler has no OpenMP: one thread there
                to = Path(made) / path.name
                done = subprocess.run(
                    [cxx, *FLAGS, *threads, *SOURCES, "-o", to], capture_output=True, text=True
                )
                if done.returncode == 0:
                    to.replace(path)
                    break
            else:
                names = ", ".join(file.name for file in SOURCES)
                print(
                    f"{cxx} cannot compile {names}: PyTorch computes everything, slower\n{done.stderr}",
                    file=sys.stderr,
                )
                return None
    found = ctypes.CDLL(str(path))
    p, n = c_void_p, c_int64
    found.step.restype = n
    found.step.argtypes = [p, p, n, p, p, p, n, p, p, p, c_int]
    found.pack.argtypes = [p, n, n, c_int, c_int, p, c_int]
    found.large_pages.argtypes = [p, n]
    found.checksum.restype = c_uint64
    found.checksum.argtypes = [p, n, c_int]
    found.draw.argtypes = [p, n, n, c_float, p, p, p, p, c_int]
    found.attention.argtypes = [p, p, p, p, p, c_int]
    found.attention_backward.argtypes = [p, p, p, p, p, p, p, c_int]
    found.rms_norm.argtypes = [p, p, p, p, n, n, c_float, c_int]
    found.rms_norm_backward.argtypes = [p, p, p, p, p, p, n, n, c_int]
    found.swiglu.argtypes = [p, p, n, n, c_int]
    found.swiglu_backward.argtypes = [p, p, p, n, n, c_int]
    return found


def available(device: torch.device) -> bool:
    """Can the C++ be used on this device?"""
    return device.type == "cpu" and native() is not None


def takes(*tensors: torch.Tensor) -> bool:
    """The C++ computes in float32 on a CPU."""
    return all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
