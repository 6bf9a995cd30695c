"""The kernels on a GPU: are they right, and how near do they come to what the device can move and multiply?

    python bench/kernels_gpu.py [--to DIR]   checks, then figures: a table, and DIR/kernels.jsonl ($OUT without --to)
    python bench/kernels_gpu.py --sweep      also other block choices for the two kernels that read logits
    python bench/kernels_gpu.py --small      tiny sizes: that the program itself runs, on a CPU too

Right: relative error in the Euclidean norm against float64 on the CPU, for fresh random inputs; a bound that is
exceeded ends the program with exit code 1 before anything is timed. Bytes are counted, not measured: 2TV for log-probs
of bf16 logits (each is read once), 4TV for the loss that turns logits into their gradient; the share is that of the
bandwidth of a copy on the same device. The fused head is set beside the same loss in two calls, in plain PyTorch and,
where it is installed, in liger-kernel; memory is the peak beyond inputs and outputs (the gradients of the hidden states
in bf16 and of the weight in float32 are outputs; who returns the latter in bf16 holds that much less).
"""

import argparse
import functools
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

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kernels import head_loss, logprob, policy_loss, triton
from kernels.advantage import group_advantage, process_advantage
from kernels.head_loss import head_policy_loss, policy_loss_from_logits
from kernels.kl import kl
from kernels.logprob import linear_logprob, logprob_from_logits

GB = 1e9
BETA, TEMPERATURE = 0.04, 0.9


# --------------------------------------------------------------------------------------------------
# Inputs


def tokens_of(T, V, device, seed=0):
    """Targets, advantages, weights, old and reference log-probs of T tokens, none of them masked."""
    draw = torch.Generator().manual_seed(seed)
    found = dict(
        targets=torch.randint(V, (T,), generator=draw),
        advantage=torch.randn(T, generator=draw),
        weights=torch.full((T,), 1 / T),
        old_logp=-torch.rand(T, generator=draw) * 12,
        ref_logp=-torch.rand(T, generator=draw) * 12,
    )
    return {name: x.to(device) for name, x in found.items()}


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


def near_policy(tokens, logp, seed):
    """Old and reference log-probs beside those of the policy, so that some tokens are clipped on either side; a quarter
    of the tokens masked, with NaN where nothing may be read, and some without advantage."""
    draw, T = torch.Generator().manual_seed(seed), len(logp)
    found = {k: x.cpu() for k, x in tokens.items()}
    found["old_logp"], found["ref_logp"] = (
        logp.float() + 0.3 * torch.randn(T, generator=draw) for _ in range(2)
    )
    masked = torch.rand(T, generator=draw) < 0.25
    found["weights"] = found["weights"].masked_fill(masked, 0)
    found["advantage"] = found["advantage"].masked_fill(torch.rand(T, generator=draw) < 0.2, 0)
    return {
        k: x.masked_fill(masked, float("nan")) if k in ("advantage", "old_logp", "ref_logp") else x
        for k, x in found.items()
    }


def check(device, small, seed, backend=None) -> list[dict]:
    """Every kernel against float64 on the CPU: [{kernel, quantity, error, bound}]. backend: that of the kernels."""
    rows = []

    def add(kernel, bound, **pairs):
        for name, (found, exact) in pairs.items():
            rows.append(
                {"kernel": kernel, "quantity": name, "error": error(found, exact), "bound": bound}
            )

    def exact_of(x):
        return (
            None if x is None else x.detach().double().cpu() if x.is_floating_point() else x.cpu()
        )

    sizes = (
        [(7, 16, 37), (33, 32, 300)]
        if small
        else [(7, 16, 37), (300, 128, 32_256), (513, 256, 50_257)]
    )
    for (T, D, V), dtype in itertools.product(sizes, (torch.float32, torch.bfloat16)):
        name, bound = f"T {T} D {D} V {V} {str(dtype)[6:]}", (3e-5, 1e-2)[dtype == torch.bfloat16]
        hidden, weight = head_inputs(T, D, V, device, dtype, seed)
        h, w = (exact_of(x).requires_grad_() for x in (hidden, weight))
        tokens = tokens_of(T, V, device, seed)
        with torch.no_grad():
            tokens = near_policy(
                tokens, linear_logprob(h, w, tokens["targets"].cpu(), TEMPERATURE)[0], seed
            )
        own, exact = (
            {k: x.to(device) for k, x in tokens.items()},
            {k: exact_of(x) for k, x in tokens.items()},
        )

        grad = torch.randn(T, generator=torch.Generator().manual_seed(seed))
        logp, entropy = linear_logprob(
            hidden, weight, own["targets"], TEMPERATURE, chunk=5, backend=backend
        )
        logp.backward(grad.to(device))
        want, want_entropy = linear_logprob(h, w, exact["targets"], TEMPERATURE)
        want.backward(grad.double())
        add(f"linear_logprob {name}", 3e-5, logp=(logp, want), entropy=(entropy, want_entropy))
        add(
            f"linear_logprob {name}",
            bound,
            hidden=(hidden.grad, h.grad),
            weight=(weight.grad, w.grad),
        )

        hidden.grad = weight.grad = h.grad = w.grad = None
        settings = dict(clip_low=0.1, clip_high=0.3, beta=0.2, temperature=TEMPERATURE)
        loss, stats, logp = head_policy_loss(
            hidden, weight, **own, **settings, chunk=5, backend=backend
        )
        (2 * loss).backward()
        want, want_stats, want_logp = head_policy_loss(h, w, **exact, **settings)
        (2 * want).backward()
        add(
            f"head_policy_loss {name}",
            3e-5,
            loss=(loss, want),
            logp=(logp, want_logp),
            **{k: (stats[k], want_stats[k]) for k in stats if k != "clip"},
        )
        add(
            f"head_policy_loss {name}",
            bound,
            hidden=(hidden.grad, h.grad),
            weight=(weight.grad, w.grad),
        )

        logits = (h @ w.T).detach().to(dtype)
        for inplace in (False, True):
            x, z = logits.to(device).clone().requires_grad_(), logits.double().requires_grad_()
            loss, stats, _ = policy_loss_from_logits(
                x, **own, **settings, inplace=inplace, backend=backend
            )
            loss.backward()
            want, want_stats, _ = policy_loss_from_logits(z, **exact, **settings, backend="torch")
            want.backward()
            kernel = f"policy_loss_from_logits {name}{' in place' * inplace}"
            add(kernel, 3e-5, loss=(loss, want), kl=(stats["kl"], want_stats["kl"]))
            add(kernel, bound, logits=(x.grad, z.grad))
        x, z = logits.to(device).clone().requires_grad_(), logits.double().requires_grad_()
        logp, entropy = logprob_from_logits(x, own["targets"], TEMPERATURE, backend=backend)
        logp.backward(grad.to(device))
        want, want_entropy = logprob_from_logits(z, exact["targets"], TEMPERATURE, backend="torch")
        want.backward(grad.double())
        add(f"logprob_from_logits {name}", 3e-5, logp=(logp, want), entropy=(entropy, want_entropy))
        add(f"logprob_from_logits {name}", bound, logits=(x.grad, z.grad))

    draw = torch.Generator().manual_seed(seed)
    d = torch.cat([torch.randn(5000, generator=draw), torch.logspace(-7, 1.5, 200)])
    for kind in ("k1", "k2", "k3"):
        found = kl(torch.zeros_like(d).to(device), d.to(device), kind, backend)
        add(f"kl {kind}", 1e-5, kl=(found, kl(0 * d.double(), d.double(), kind)))
    rewards = torch.rand(64, 16, generator=draw, dtype=torch.float64).round(decimals=1)
    rewards[3] = 0.1
    found = group_advantage(rewards.to(device), backend=backend)
    add("group_advantage", 1e-6, advantage=(found, group_advantage(rewards, backend="torch")))
    ends = [torch.tensor([3, 9, 70]), torch.tensor([0, 5]), torch.tensor([99])]
    steps, lengths = [torch.rand(len(e), generator=draw) for e in ends], [80, 6, 100]
    found = process_advantage(
        [r.to(device) for r in steps], [e.to(device) for e in ends], lengths, backend=backend
    )
    add(
        "process_advantage",
        1e-6,
        advantage=(torch.cat(found), torch.cat(process_advantage(steps, ends, lengths))),
    )
    return rows


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


def plain_loss(logp, advantage, weights, old_logp, ref_logp):
    """Equation 3 in plain PyTorch."""
    ratio, d = (logp - old_logp).exp(), ref_logp - logp
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return (weights * (BETA * (d.exp() - d - 1) - surrogate)).sum()


def from_logits(report, small) -> None:
    """Log-probs (2TV bytes) and policy loss with its gradient in place (4TV bytes) of bf16 logits."""
    T, V, device = (64, 512, report.device) if small else (16_384, 102_400, report.device)
    tokens = tokens_of(T, V, device)
    targets = tokens["targets"]
    logits = (2 * torch.randn(T, V, device=device, dtype=torch.bfloat16)).requires_grad_()
    size = T * V * logits.element_size()
    shape = f"T {T} V {V}"
    with torch.no_grad():
        report.time(
            f"log-prob, {shape}, 2TV",
            lambda: logprob_from_logits(logits, targets, TEMPERATURE, False),
            size,
        )
        report.time(
            f"  with entropy, {shape}, 2TV",
            lambda: logprob_from_logits(logits, targets, TEMPERATURE),
            size,
        )

        def plain():
            return (logits.float() / TEMPERATURE).log_softmax(-1).gather(1, targets[:, None])

        report.time(f"  plain PyTorch, {shape}", plain, size)

    def fused():  # from the second call on the logits are gradients: as many bytes, and still finite numbers
        with torch.enable_grad():
            return policy_loss_from_logits(logits, **tokens, temperature=TEMPERATURE, inplace=True)

    report.time(f"policy loss in place, {shape}, 4TV", fused, 2 * size)
    rows = T // 4  # the plain way holds several tables in float32
    x = (2 * torch.randn(rows, V, device=device, dtype=torch.bfloat16)).requires_grad_()
    own = {k: v[:rows] for k, v in tokens.items() if k != "targets"}

    def plain_step():
        logp = (x.float() / TEMPERATURE).log_softmax(-1).gather(1, targets[:rows, None])[:, 0]
        return torch.autograd.grad(plain_loss(logp, **own), x)

    report.time(f"  plain PyTorch, T {rows} V {V}", plain_step, 2 * size // 4)


def head(report, small) -> None:
    """Head and loss, forward and backward, in several ways; all must give one loss."""
    T, D, V, B = (64, 32, 500, 4) if small else (16_384, 4096, 131_072, 16)
    device, cuda = report.device, report.device.type == "cuda"
    hidden, weight = head_inputs(T, D, V, device, torch.bfloat16 if cuda else torch.float32)
    tokens, flops = tokens_of(T, V, device), 6 * T * D * V
    with torch.no_grad():
        logp = linear_logprob(hidden, weight, tokens["targets"], TEMPERATURE, entropy=False)[0]
        draw = torch.Generator(device).manual_seed(1)
        for name in ("old_logp", "ref_logp"):
            tokens[name] = logp + 0.2 * torch.randn(T, generator=draw, device=device)
        tokens["advantage"] = tokens["advantage"][:B].repeat_interleave(T // B)  # one a completion
    outputs = hidden.numel() * hidden.element_size() + 4 * weight.numel()
    losses = {}

    def step(name, function):
        def run():
            hidden.grad = weight.grad = None
            loss = function()
            loss.backward()
            losses[name] = loss.detach()

        return run

    settings = dict(temperature=TEMPERATURE, beta=BETA, entropy=False)
    targets, rest = tokens["targets"], {k: v for k, v in tokens.items() if k != "targets"}

    def two_calls():
        logp, _ = linear_logprob(hidden, weight, targets, TEMPERATURE, entropy=False)
        return policy_loss.policy_loss(
            logp, rest["old_logp"], rest["ref_logp"], rest["advantage"], rest["weights"], beta=BETA
        )[0]

    def plain():
        logp = (
            ((hidden @ weight.T).float() / TEMPERATURE)
            .log_softmax(-1)
            .gather(1, targets[:, None])[:, 0]
        )
        return plain_loss(logp, **rest)

    ways = {
        "fused head": lambda: head_policy_loss(hidden, weight, **tokens, **settings)[0],
        "  with entropy": lambda: head_policy_loss(
            hidden, weight, **tokens, **{**settings, "entropy": True}
        )[0],
        "  two calls": two_calls,
        "  plain PyTorch": plain,
    }
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

        its = LigerFusedLinearGRPOLoss(
            beta=BETA, loss_type="grpo", temperature=TEMPERATURE, chunk_size=1
        )
        shape = B, T // B
        ones = torch.ones(shape, device=device)
        ways[f"  liger-kernel {importlib.metadata.version('liger-kernel')}"] = lambda: its(
            hidden.view(*shape, D),
            weight,
            targets.view(shape),
            ones,
            rest["advantage"][:: T // B],
            ref_per_token_logps=rest["ref_logp"].view(shape),
            old_per_token_logps=rest["old_logp"].view(shape),
        )[0]
    except ImportError:
        report.write("  liger-kernel", "not installed")
    for name, function in ways.items():
        label = f"{name}, T {T} H {D} V {V}"
        try:
            report.time(label, step(name, function), flops=flops, outputs=outputs)
        except (
            Exception
        ) as failure:  # out of memory, or another interface of a peer's: said, and the rest goes on
            if name.startswith("fused"):
                raise
            report.write(
                label,
                f"failed: {type(failure).__name__}: {str(failure).splitlines()[0][:90]}",
                failed=True,
            )
        hidden.grad = weight.grad = None
    for name, loss in losses.items():
        off = abs(loss.item() - losses["fused head"].item())
        report.write(
            f"{name.strip()}: loss", f"{loss.item():.6f}, off by {off:.1e}", loss=loss.item()
        )


def launches(report) -> None:
    """Kernels launched by a call, and compilations after a change of length, temperature, beta or clip range."""
    device = report.device
    if device.type != "cuda":
        return report.write("launches, compilations", "counted on a GPU alone")
    from torch.profiler import ProfilerActivity, profile

    x, rewards = torch.randn(4096, device=device), torch.rand(64, 16, device=device)
    for name, function in (
        ("kl, no gradient", lambda: kl(x, x)),
        ("group_advantage", lambda: group_advantage(rewards)),
    ):
        function()
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            function()
            torch.cuda.synchronize()
        count = sum(
            e.count
            for e in profiled.key_averages()
            if e.device_type == torch.autograd.DeviceType.CUDA
        )
        report.write(f"launches of {name}", str(count), launches=count)

    def compiled():
        kernels = (
            head_loss._policy_kernel,
            logprob._read_kernel,
            logprob._slope_kernel,
            policy_loss._loss_kernel,
        )
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    hidden, weight = head_inputs(999, 64, 1024, device, torch.bfloat16)
    counts = []
    for T, temperature, beta, clip in (
        (640, 0.9, 0.04, 0.2),
        (999, 0.7, 0.1, 0.3),
        (1, 1.0, 0.04, 0.2),
        (16, 1, 1, 0),
    ):
        tokens = tokens_of(T, 1024, device)
        settings = dict(temperature=temperature, beta=beta, clip_low=clip, chunk=max(T // 3, 1))
        head_policy_loss(hidden[:T], weight, **tokens, **settings)[0].backward()
        linear_logprob(hidden[:T], weight, tokens["targets"], temperature)[0].sum().backward()
        counts.append(compiled())
    report.write(
        "compilations after other lengths and scalars",
        str(counts[-1] - counts[0]),
        compilations=counts,
    )


def sweep(report, small) -> None:
    """Other warps, stages and programs for the kernels that read logits; the choices in the files are not changed."""
    T, V, device = (64, 512, report.device) if small else (8192, 131_072, report.device)
    tokens = tokens_of(T, V, device)
    logits = (2 * torch.randn(T, V, device=device, dtype=torch.bfloat16)).requires_grad_()
    size = 2 * T * V
    before = dict(logprob.READ), dict(head_loss.ROW), head_loss.PROGRAMS
    try:
        for warps, stages in itertools.product((4, 8, 16), (1, 2, 3, 4)):
            logprob.READ.update(warps=warps, stages=stages)
            with torch.no_grad():
                report.time(
                    f"log-prob, V {V}, {warps} warps, {stages} stages",
                    lambda: logprob_from_logits(logits, tokens["targets"], 1.0, False),
                    size,
                )
        for programs, warps, stages in itertools.product((1, 2, 3), (8, 16, 32), (1, 3, 4)):
            head_loss.ROW.update(warps=warps, stages=stages)
            head_loss.PROGRAMS = programs
            name = f"policy loss, V {V}, {programs} programs of {warps} warps, {stages} stages"
            try:
                fused = functools.partial(
                    policy_loss_from_logits, logits, **tokens, entropy=False, inplace=True
                )
                report.time(name, fused, 2 * size)
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
