"""The report of `latte-fast doctor`: versions, GPU, CPU, how the extension was built, and why a backend can't serve."""

import importlib.metadata
import importlib.util
import platform
import re
from pathlib import Path
from typing import Any

import torch

from latte_fast import _ext, backends
from latte_fast._ext import blas_lt
from latte_fast.kernels import library_choice
from latte_fast.ops.registration import REGISTRY
from latte_fast.ops.sizes import Sizes

PACKAGES = ("latte_fast", "torch", "triton", "numpy", "einops", "safetensors", "flash-attn", "xformers", "diffusers")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def gpu() -> str:
    if not torch.cuda.is_available():
        return f"none seen by torch (torch built for CUDA {torch.version.cuda or 'no'})"
    name = torch.cuda.get_device_name()
    major, minor = torch.cuda.get_device_capability()
    return f"{name}, sm_{major}{minor}, torch built for CUDA {torch.version.cuda}"


def cpu() -> str:
    """Returns the processor's name, torch's number of threads and its instruction set."""
    facts = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.*)", facts.read_text()) if facts.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def openmp_runtimes() -> list[str]:
    """Returns the OpenMP libraries in this process; two of them would compete for the cores."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    return sorted(set(re.findall(r"\S*/lib(?:gomp|iomp5|omp)\S*", maps.read_text())))


def extension() -> list[str]:
    reason = _ext.why_not_built()
    if reason:
        return [reason]
    build = _ext.build_info()
    lines = [f"built with {build.get('compiler')}; levels {', '.join(build.get('levels', []))}"]
    module: Any = _ext.load()
    if hasattr(module, "isa"):
        lines[0] += f"; running {module.isa()}"
    lines += [f"level {level} refused: {why}" for level, why in build.get("refused", {}).items()]
    if build.get("cuda"):
        runtime, driver, devices = module.cuda_runtime()
        lines.append(
            f"CUDA {runtime}, for {', '.join(build['cuda']['archs'])}; driver {driver or 'none'}, {devices} devices"
        )
    else:
        lines.append(f"no CUDA: {build.get('cuda_reason')}")
    return lines


def products() -> str:
    """Returns whether cuBLASLt can be called here, and whether this GPU's table names algorithms of it."""
    reason = blas_lt.why_not_loaded()
    if reason is not None:
        return f"by torch alone: {reason}"
    version = blas_lt.version(torch.cuda.current_device())
    named = library_choice.has_products(torch.device("cuda", torch.cuda.current_device()), version)
    return f"cuBLASLt {version}; this GPU's table {'names' if named else 'has no'} algorithms of it"


def table(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> list[tuple[str, str, str]]:
    """Returns (op, backend, "yes" or the reason) for every op and backend, on what a Latte-S/2 passes."""
    sizes = Sizes(clips=1, frames=16, patches=256, width=384, heads=6, device=device, dtype=dtype)
    rows = []
    for name in backends.ops():
        args = REGISTRY[name].example(sizes).values()
        rows += [(name, b, backends.why_not(name, b, *args) or "yes") for b in backends.candidates(name)]
    return rows


def report() -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = ["versions   " + ", ".join(f"{k} {v}" for k, v in versions().items())]
    lines.append(f"GPU        {gpu()}")
    lines.append(f"CPU        {cpu()}")
    lines += [f"extension  {line}" for line in extension()]
    lines.append(f"products   {products()}")
    pools = openmp_runtimes()
    if len(pools) > 1:
        lines.append(
            f"WARNING    {len(pools)} OpenMP runtimes fight over the cores: {', '.join(pools)}; import torch first"
        )
    lines.append(f"\nop x backend, bf16 on {device}; the first yes serves")
    lines += [f"  {op:28} {backend:11} {answer}" for op, backend, answer in table(device)]
    return "\n".join(lines)
