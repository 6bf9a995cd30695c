"""The kernels on a GPU: are they right, and how near do they come to what the device can move and multiply?

    python bench/kernels_gpu.py [--to DIR]   checks, then figures: a table, and DIR/kernels.jsonl ($OUT without --to)
    python bench/kernels_gpu.py --sweep      also other block choices for the two kernels that read logits
    python bench/kernels_gpu.py --small      tiny sizes: that the program itself runs, on a CPU too

Right: relative error in the Euclidean norm of each accelerator in Triton against its definition in float64 on the CPU, for
fresh random inputs. A bound that is exceeded ends the program with exit code 1 before anything is timed. Bytes are
counted, not measured: 2TV for log-probs of bf16 logits, of which each is read once. The share is that of the bandwidth
of a copy on the same device. The head and the loss in one are set beside two calls, plain PyTorch and, where it is
installed, liger-kernel. Memory is the peak beyond inputs and outputs.
"""

import argparse
import gc
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import batch
import kernels
import train_grpo
from kernels.cases import group_advantage_cases, process_advantage_cases, tokens_of
from kernels.triton import advantage, head_loss, logprob, policy_loss, triton

GB = 1e9
BETA, TEMPERATURE = 0.04, 0.9


# --------------------------------------------------------------------------------------------------
# Inputs


def head_inputs(T, D, V, device, dtype, seed=0):
    """Hidden states and head weight whose logits have a deviation of about 2."""
    draw = torch.Generator(device).manual_seed(seed)
    hidden = torch.randn(T, D, generator=draw, device=device).to(dtype)
    weight = (torch.randn(V, D, generator=draw, device=device) * (2 / D**0.5)).to(dtype)
    return hidden.requires_grad_(), weight.requires_grad_()


# --------------------------------------------------------------------------------------------------
# Right


def error(found, exact):
    """Relative error in the Euclidean norm; infinite for a NaN."""
    found, exact = found.detach().double().cpu(), exact.detach().double().cpu()
    value = ((found - exact).norm() / exact.norm().clamp(min=1e-30)).item()
    return value if value == value else float("inf")


def exact_of(x):
    """The same in float64 on the CPU; a list or a namespace of tensors too."""
    if isinstance(x, SimpleNamespace):
        return SimpleNamespace(**{name: exact_of(value) for name, value in vars(x).items()})
    if isinstance(x, list):
        return [exact_of(value) for value in x]
    if not torch.is_tensor(x):
        return x
    exact = x.detach().cpu()
    exact = exact.double() if exact.is_floating_point() else exact
    return exact.requires_grad_(x.requires_grad)


def values(function, args) -> dict:
    """What a call returns, and the gradients of its arguments, by name."""
    found = function(*args)
    found = list(found) if isinstance(found, tuple | list) else [found]
    result = {}
    for number, part in enumerate(found):
        for name, x in part.items() if isinstance(part, dict) else [(f"result {number}", part)]:
            if x is not None and name != "clip":  # a token at the edge may count or not
                result[name] = x
    if found[0].requires_grad:
        draw = torch.Generator().manual_seed(1)
        upstream = torch.randn(found[0].shape, generator=draw)
        found[0].backward(upstream.to(found[0]))
        for number, x in enumerate(args):
            if torch.is_tensor(x) and x.requires_grad:
                result[f"gradient {number}"] = x.grad
    return result


def check(device, small, seed) -> list[dict]:
    """Each kernel against its definition in float64: [{kernel, quantity, error, bound}]."""
    rows = []

    def add(name, function, definition, args, bound, gradient_bound=None) -> None:
        with kernels.plain():
            exact = values(definition, [exact_of(x) for x in args])
        for quantity, x in values(function, args).items():
            limit = gradient_bound if "gradient" in quantity and gradient_bound else bound
            off = error(x, exact[quantity])
            rows.append({"kernel": name, "quantity": quantity, "error": off, "bound": limit})

    sizes = (
        [(7, 16, 37), (33, 32, 300)]
        if small
        else [(7, 16, 37), (300, 128, 32_256), (513, 256, 50_257)]
    )
    for (T, D, V), dtype in itertools.product(sizes, (torch.float32, torch.bfloat16)):
        name, bound = f"T {T} D {D} V {V} {str(dtype)[6:]}", (3e-5, 1e-2)[dtype == torch.bfloat16]
        hidden, weight = head_inputs(T, D, V, device, dtype, seed)
        micro, config = micro_batch(hidden, weight, seed)
        args = [hidden, weight, micro.targets, TEMPERATURE, True]
        add(f"logprobs {name}", logprob.logprobs, batch.logprobs, args, 3e-5, bound)
        hidden.grad = weight.grad = None
        args = [hidden, weight, micro, config]
        add(f"policy_loss {name}", head_loss.grpo, train_grpo.policy_loss, args, 3e-5, bound)
        logp = batch.logprobs(hidden, weight, micro.targets)[0].detach().requires_grad_()
        args = [
            logp,
            micro.old_logp,
            micro.ref_logp,
            micro.advantage,
            micro.weight,
            (0.1, 0.2),
            0.3,
        ]
        add(f"grpo_loss {name}", policy_loss.grpo_loss, train_grpo.grpo_loss, args, 3e-5)

    setting = kernels.Setting(None, device)
    for args in group_advantage_cases(setting):
        pair = advantage.group_advantage, train_grpo.group_advantage
        add("group_advantage", *pair, list(args), 1e-6)
    for args in process_advantage_cases(setting):
        pair = advantage.process_advantage, train_grpo.process_advantage
        add("process_advantage", *pair, list(args), 1e-6)
    return rows


def micro_batch(hidden, weight, seed=0):
    """(tokens near the policy, of which some are clipped and some masked; the settings of the loss)."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(len(weight), (len(hidden),), generator=draw).to(hidden.device)
    with torch.no_grad():
        logp = batch.logprobs(hidden, weight, targets, TEMPERATURE)[0]
    micro = tokens_of(logp, True, True)
    micro.targets = targets
    settings = dict(temperature=TEMPERATURE, clip_low=0.1, clip_high=0.3, beta=0.2)
    return micro, SimpleNamespace(**settings)


# --------------------------------------------------------------------------------------------------
# Fast


def seconds(function, repeats, device) -> list[float]:
    """Times of single calls, after two to warm up; on GPUs by events."""
    for _ in range(2):
        function()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
    return times


def peak(function, device) -> int | None:
    """Bytes at the peak of a call beyond those before it; None on a CPU."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class Report:
    """Rows as they come: a line of the table and a line of JSON."""

    def __init__(self, path, device, repeats):
        self.device, self.repeats = device, repeats
        self.machine = {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
            "torch": torch.__version__,
            "triton": getattr(triton, "__version__", None),
        }
        self.file = open(path, "w", encoding="utf-8") if path else None
        self.copy = self.matmul = None  # bytes and FLOPs a second of the device

    def write(self, name, text, **row) -> None:
        print(f"{name:58} {text}", flush=True)
        if self.file:
            self.file.write(json.dumps({"name": name, **row, **self.machine}) + "\n")
            self.file.flush()

    def time(self, name, function, bytes=None, flops=None, outputs=None, **row):
        """Time a call; `outputs`: bytes it returns, and its peak of memory beyond them is reported."""
        times = seconds(function, self.repeats, self.device)
        middle = statistics.median(times)
        row |= {"ms": middle * 1e3, "ms_min": min(times) * 1e3, "ms_max": max(times) * 1e3}
        text = f"{row['ms']:9.3f} ms ({row['ms_min']:.3f} to {row['ms_max']:.3f})"
        if bytes:
            row |= {
                "GB/s": bytes / middle / GB,
                "share_of_copy": bytes / middle / self.copy if self.copy else None,
            }
            text += f"  {row['GB/s']:7.0f} GB/s" + (
                f" = {row['share_of_copy']:.0%} of a copy" if self.copy else ""
            )
        if flops:
            rate = flops / middle
            row |= {
                "TFLOP/s": rate / 1e12,
                "share_of_matmul": rate / self.matmul if self.matmul else None,
            }
            text += f"  {row['TFLOP/s']:7.2f} TFLOP/s" + (
                f" = {row['share_of_matmul']:.0%}" if self.matmul else ""
            )
        if outputs is not None and (bytes_at_peak := peak(function, self.device)) is not None:
            row["GB_beyond"] = (bytes_at_peak - outputs) / GB
            text += f"  {row['GB_beyond']:.2f} GB beyond inputs and outputs"
        self.write(name, text, **row)
        return middle


def ceilings(report, small) -> None:
    """What the device can do: a copy (bytes read and written) and a matrix product in bf16 on random numbers."""
    n, device = 1 << 12 if small else 1 << 30, report.device
    a = torch.randint(0, 127, (n,), device=device, dtype=torch.int8)
    b = torch.empty_like(a)
    report.copy = 2 * n / report.time("copy, read and write", lambda: b.copy_(a), bytes=2 * n)
    n = 64 if small else 8192
    x, y = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    report.matmul = (
        2 * n**3 / report.time(f"matrix product bf16, {n} squared", lambda: x @ y, flops=2 * n**3)
    )


def from_logits(report, small) -> None:
    """Log-probs (2TV bytes) of bf16 logits."""
    T, V, device = (64, 512, report.device) if small else (16_384, 102_400, report.device)
    targets = torch.randint(V, (T,), generator=torch.Generator().manual_seed(0)).to(device)
    logits = 2 * torch.randn(T, V, device=device, dtype=torch.bfloat16)
    size = T * V * logits.element_size()
    shape = f"T {T} V {V}"

    def plain():
        return (logits.float() / TEMPERATURE).log_softmax(-1).gather(1, targets[:, None])

    def read(entropy):
        return lambda: logprob.read(logits, targets, TEMPERATURE, entropy)

    report.time(f"log-prob, {shape}, 2TV", read(False), size)
    report.time(f"  with entropy, {shape}, 2TV", read(True), size)
    report.time(f"  plain PyTorch, {shape}", plain, size)


def head(report, small) -> None:
    """Head and loss, forward and backward, in several ways; all must give the same loss."""
    T, D, V, B = (64, 32, 500, 4) if small else (16_384, 4096, 131_072, 16)
    device, cuda = report.device, report.device.type == "cuda"
    hidden, weight = head_inputs(T, D, V, device, torch.bfloat16 if cuda else torch.float32)
    flops = 6 * T * D * V
    draw = torch.Generator(device).manual_seed(1)
    targets = torch.randint(V, (T,), generator=draw, device=device)
    with torch.no_grad():
        logp = logprob.logprobs(hidden, weight, targets, TEMPERATURE)[0]
    noise = 0.2 * torch.randn(3, T, generator=draw, device=device)
    micro = SimpleNamespace(
        targets=targets,
        advantage=noise[2, :B].repeat_interleave(T // B),  # one a completion
        weight=torch.full((T,), 1 / T, device=device),
        old_logp=logp + noise[0],
        ref_logp=logp + noise[1],
    )
    config = SimpleNamespace(temperature=TEMPERATURE, clip_low=0.2, clip_high=0.2, beta=BETA)
    outputs = hidden.numel() * hidden.element_size() + 4 * weight.numel()
    losses = {}

    def step(name, function):
        def run():
            hidden.grad = weight.grad = None
            loss = function()
            loss.backward()
            losses[name] = loss.detach()

        return run

    def two_calls():
        functions = {
            "batch.logprobs": logprob.logprobs,
            "train_grpo.grpo_loss": policy_loss.grpo_loss,
        }
        with kernels.using(functions):
            return train_grpo.policy_loss(hidden, weight, micro, config)[0]

    def plain():
        with kernels.plain():
            return train_grpo.policy_loss(hidden, weight, micro, config)[0]

    ways = {
        "fused head": lambda: head_loss.grpo(hidden, weight, micro, config)[0],
        "  two calls": two_calls,
        "  plain PyTorch": plain,
    }
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

        liger = LigerFusedLinearGRPOLoss(
            beta=BETA, loss_type="grpo", temperature=TEMPERATURE, chunk_size=1
        )
        shape = B, T // B
        ones = torch.ones(shape, device=device)
        ways[f"  liger-kernel {importlib.metadata.version('liger-kernel')}"] = lambda: liger(
            hidden.view(*shape, D),
            weight,
            targets.view(shape),
            ones,
            micro.advantage[:: T // B],
            ref_per_token_logps=micro.ref_logp.view(shape),
            old_per_token_logps=micro.old_logp.view(shape),
        )[0]
    except ImportError:
        report.write("  liger-kernel", "not installed")
    for name, function in ways.items():
        label = f"{name}, T {T} H {D} V {V}"
        try:
            report.time(label, step(name, function), flops=flops, outputs=outputs)
        except Exception as failure:  # out of memory, or a peer with another interface
            if name.startswith("fused"):
                raise
            reason = f"{type(failure).__name__}: {str(failure).splitlines()[0][:90]}"
            report.write(label, f"failed: {reason}", failed=True)
        hidden.grad = weight.grad = None
    for name, loss in losses.items():
        off = abs(loss.item() - losses["fused head"].item())
        text = f"{loss.item():.6f}, off by {off:.1e}"
        report.write(f"{name.strip()}: loss", text, loss=loss.item())


def launches(report) -> None:
    """Kernels launched by a call, and compilations after a change of length, temperature, beta or clip range."""
    device = report.device
    if device.type != "cuda":
        return report.write("launches, compilations", "counted on a GPU alone")
    from torch.profiler import ProfilerActivity, profile

    rewards = torch.rand(64, 16, device=device)
    advantage.group_advantage(rewards)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        advantage.group_advantage(rewards)
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    count = sum(e.count for e in profiled.key_averages() if e.device_type == on_device)
    report.write("launches of group_advantage", str(count), launches=count)

    def compiled():
        found = (
            head_loss._policy_kernel,
            logprob._read_kernel,
            logprob._slope_kernel,
            policy_loss._loss_kernel,
        )
        return sum(len(cache[0]) for kernel in found for cache in kernel.device_caches.values())

    hidden, weight = head_inputs(999, 64, 1024, device, torch.bfloat16)
    counts = []
    for T, temperature, beta, clip in (
        (640, 0.9, 0.04, 0.2),
        (999, 0.7, 0.1, 0.3),
        (1, 1.0, 0.04, 0.2),
        (16, 1, 1, 0),
    ):
        micro, config = micro_batch(hidden[:T], weight)
        config.temperature, config.beta, config.clip_low = temperature, beta, clip
        head_loss.grpo(hidden[:T], weight, micro, config)[0].backward()
        logprob.logprobs(hidden[:T], weight, micro.targets, temperature)[0].sum().backward()
        counts.append(compiled())
    text = str(counts[-1] - counts[0])
    report.write("compilations after other lengths and scalars", text, compilations=counts)


def sweep(report, small) -> None:
    """Other warps, stages and programs for the kernels that read logits; the files keep their choices."""
    T, D, V = (64, 32, 512) if small else (8192, 1024, 131_072)
    device = report.device
    hidden, weight = head_inputs(T, D, V, device, torch.bfloat16)
    micro, config = micro_batch(hidden, weight)
    logits = 2 * torch.randn(T, V, device=device, dtype=torch.bfloat16)
    before = dict(logprob.READ), dict(head_loss.ROW), head_loss.PROGRAMS

    def read():
        return logprob.read(logits, micro.targets, 1.0, False)

    def fused():
        return head_loss.grpo(hidden, weight, micro, config)

    try:
        for warps, stages in itertools.product((4, 8, 16), (1, 2, 3, 4)):
            logprob.READ.update(warps=warps, stages=stages)
            name = f"log-prob, V {V}, {warps} warps, {stages} stages"
            report.time(name, read, 2 * T * V)
        for programs, warps, stages in itertools.product((1, 2, 3), (8, 16, 32), (1, 3, 4)):
            head_loss.ROW.update(warps=warps, stages=stages)
            head_loss.PROGRAMS = programs
            name = f"policy loss, V {V}, {programs} programs of {warps} warps, {stages} stages"
            try:
                report.time(name, fused)
            except Exception as failure:  # a choice that does not fit the device
                report.write(name, f"failed: {type(failure).__name__}", failed=True)
    finally:
        logprob.READ.update(before[0])
        head_loss.ROW.update(before[1])
        head_loss.PROGRAMS = before[2]


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--to", default=os.environ.get("OUT", ""), help="directory for kernels.jsonl"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 2**31, help="of the inputs; another each time"
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    given = parser.parse_args(arguments)
    if given.device == "cpu" and not given.small:
        parser.error("no GPU here: give --small to try the program itself")
    if given.to:
        Path(given.to).mkdir(parents=True, exist_ok=True)
    device = torch.device(given.device)
    report = Report(Path(given.to) / "kernels.jsonl" if given.to else None, device, given.repeats)
    print(f"{report.machine}, seed {given.seed}")
    checks = check(device, given.small, given.seed)
    wrong = [row for row in checks if not row["error"] <= row["bound"]]
    for row in wrong:
        text = f"{row['quantity']}: error {row['error']:.2g}, bound {row['bound']}"
        report.write(f"WRONG: {row['kernel']}", text, **row)
    worst = max(checks, key=lambda row: row["error"] / row["bound"])
    report.write(
        "correctness",
        f"{len(checks) - len(wrong)} of {len(checks)} within bounds; nearest to its bound: "
        f"{worst['kernel']} {worst['quantity']} {worst['error']:.1e} of {worst['bound']}",
        checks=len(checks),
        wrong=len(wrong),
        seed=given.seed,
    )
    if wrong:
        return 1
    ceilings(report, given.small)
    from_logits(report, given.small)
    head(report, given.small)
    launches(report)
    if given.sweep:
        sweep(report, given.small)
    return 0


if __name__ == "__main__":
    sys.exit(main())
