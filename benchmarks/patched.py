"""Races diffusers' LatteTransformer3DModel, a patched one and ours, and a patched one of an earlier commit.

python -m benchmarks.patched --before /path/to/earlier/checkout --threads 1 2

Each checkout has a process of its own, as both are called latte_fast, and needs its own extension built in place. The
laps of all contenders are interleaved, one at a time. Before they race, each is compared with diffusers' class. Peak
memory is measured in a fresh process a contender: what a forward adds to the most that the process had resident.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIXED = {"num_attention_heads": 16, "attention_head_dim": 72, "cross_attention_dim": 1152, "caption_channels": 4096}
FIXED |= {"in_channels": 4, "out_channels": 8, "patch_size": 2, "attention_bias": True, "norm_eps": 1e-6}
FIXED |= {"activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single"}
FIXED |= {"norm_elementwise_affine": False}
TOKENS = 120
LIMIT = 6e-6  # largest error over the largest value: fp32 of two, each within 3e-6 of float64
KINDS = ("diffusers", "patched", "ours")


def build(kind: str, size: argparse.Namespace) -> Any:
    """Returns a model in evaluation; all kinds have the same weights."""
    import diffusers
    import torch

    cls = diffusers.LatteTransformer3DModel
    if kind == "ours":
        from latte_fast.integrations.diffusers import LatteTransformer3DModel as cls
    torch.manual_seed(0)
    model = cls(**FIXED, num_layers=size.layers, sample_size=size.side, video_length=size.frames).eval()
    if kind == "patched":
        import latte_fast

        assert not latte_fast.patch(model).kept
    return model


def inputs(size: argparse.Namespace) -> tuple:
    import torch

    noise = torch.Generator().manual_seed(1)
    x = torch.randn(size.clips, 4, size.frames, size.side, size.side, generator=noise)
    return x, torch.tensor([500]), torch.randn(size.clips, TOKENS, FIXED["caption_channels"], generator=noise)


def serve(size: argparse.Namespace) -> None:
    """Answers each line of the standard input, {"kind": ..., "threads": ...}, with the seconds of one forward."""
    import torch

    import latte_fast

    torch.set_grad_enabled(False)
    given, models = inputs(size), {kind: build(kind, size) for kind in size.serve}
    outs = {kind: model(*given).sample for kind, model in models.items()}
    want = outs["diffusers"]
    errors = {kind: ((out - want).abs().max() / want.abs().max()).item() for kind, out in outs.items()}
    say({"errors": errors, "file": latte_fast.__file__, "extension": has_extension()})
    for line in sys.stdin:
        lap = json.loads(line)
        torch.set_num_threads(lap["threads"])
        begin = time.perf_counter()
        models[lap["kind"]](*given)
        say({"seconds": time.perf_counter() - begin})


def memory(size: argparse.Namespace) -> None:
    """Says what a forward adds to the resident memory of this process, beside weights and buffers that are reused."""
    import torch

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    (kind,) = size.memory
    model, given = build(kind, size), inputs(size)
    model(*given)
    Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
    before = resident("VmRSS")
    model(*given)
    say({"peak": resident("VmHWM") - before})


def resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def has_extension() -> bool:
    from latte_fast import _ext

    return _ext.why_not_built() is None


def say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


class Worker:
    """A process with the models of one checkout."""

    def __init__(self, root: Path, *given: str):
        # not from the folder of this file, whose modules would be in front of others of their names
        start = f"import runpy; runpy.run_path({str(Path(__file__).resolve())!r}, run_name='__main__')"
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH", ""))))}
        if "--memory" in given:
            env["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the system at once
        command = [sys.executable, "-c", start, *given]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=env, cwd=root, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self.first = self.heard()

    def heard(self) -> dict[str, Any]:
        line = self.output.readline()
        if not line:
            raise SystemExit(f"patched: a process ended with {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def run(self, **lap: Any) -> dict[str, Any]:
        self.input.write(json.dumps(lap) + "\n")
        self.input.flush()
        return self.heard()

    def end(self) -> None:
        self.input.close()
        self.process.wait()


def race(contenders: dict[str, tuple[Worker, str]], threads: int, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each contender's laps, after one that is not counted."""
    laps: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, (worker, kind) in contenders.items():
            seconds = worker.run(kind=kind, threads=threads)["seconds"]
            if i:
                laps[name].append(seconds)
    return laps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit, its extension built in place")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7, help="number of laps a contender")
    for name, number in {"layers": 2, "side": 16, "frames": 16, "clips": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve or args.memory:
        (serve if args.serve else memory)(args)
        return
    size = [f"--{name}={getattr(args, name)}" for name in ("layers", "side", "frames", "clips")]
    roots = {"": ROOT} | ({" before": args.before.resolve()} if args.before else {})
    contenders: dict[str, tuple[Worker, str]] = {}
    peaks: dict[str, int] = {}
    for when, root in roots.items():
        kinds = KINDS[:2] if when else KINDS  # the class of ours may be newer; diffusers' shows what a process does
        for kind in kinds:
            worker = Worker(root, "--memory", kind, *size)
            worker.end()
            peaks[f"{kind}{when}"] = worker.first["peak"]
        worker = Worker(root, "--serve", *kinds, *size)
        print(worker.first)
        assert Path(worker.first["file"]).is_relative_to(root), "the process must import its own checkout"
        assert worker.first["extension"], f"{root}: the extension must be built: python setup.py build_ext --inplace"
        assert max(worker.first["errors"].values()) <= LIMIT
        contenders |= {f"{kind}{when}": (worker, kind) for kind in kinds}
    for threads in args.threads:
        laps = race(contenders, threads, args.rounds)
        print(f"{threads} thread{'s' if threads > 1 else ''}, seconds a forward: median, least, most; peak in MB")
        for name, times in laps.items():
            numbers = (statistics.median(times), min(times), max(times))
            print(f"  {name:18}" + "".join(f"{t:8.3f}" for t in numbers) + f"{peaks[name] / 1e6:9.1f}")
    for worker in {id(w): w for w, _ in contenders.values()}.values():
        worker.end()


if __name__ == "__main__":
    main()
