"""The stages of a GPU day, the most valuable first, and what each runs."""

from collections.abc import Iterable
from dataclasses import dataclass

NOTHING_SELECTED = 5  # pytest's exit status
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
# races that wait for a compiler -> (suites, which of their cases)
RACES = {
    "ops": (("ops",), "XL"),
    "model": (("model",), "XL and 16-8 and not autotune and not whole"),
    "whole-graph": (("model",), "XL and whole and 8"),
}


@dataclass(frozen=True)
class Stage:
    """Arguments of Python, one command after the other, with {work} for the folder of results.

    Args:
        least: seconds without which it is not begun: the longest of its cases, which are what it resumes at.
        always: runs on every call, as the machine may be another one.
        may_be_empty: a CPU has none of the cases that are for a GPU.
    """

    name: str
    least: int
    commands: tuple[tuple[str, ...], ...]
    always: bool = False
    may_be_empty: bool = False


def plan(dry: bool) -> list[Stage]:
    """Every stage; dry, each with sizes that take a moment on a CPU, and what needs the device only named."""

    def suites(name: str, least: int, *suites: str, only: str = "") -> Stage:
        files = tuple(f"benchmarks/test_{suite}.py" for suite in suites)
        select = (*(("-k", only) if only else ()), *(("--tiny",) if dry else ()))
        options = ("--benchmark-only", "--results", f"{{work}}/{name}.json", "--resume", *select)
        return Stage(name, 5 if dry else least, ((*PYTEST, *files, *options),), may_be_empty=dry)

    def on_gpu(name: str, least: int, *command: str) -> Stage:
        needs = ("-c", f"print('needs a GPU, not run:', {' '.join(command)!r})")
        return Stage(name, 1 if dry else least, (needs if dry else command,))

    def tune(name: str, sizes: str) -> Stage:
        call = f"tune(sizes={sizes.split()!r}, resume=Path(r'{{work}}/tune.done'))"
        return on_gpu(name, 90, "-c", f"from pathlib import Path; from latte_fast.cli.tune import tune; {call}")

    smoke = ("-m", "benchmarks.cuda.smoke", *(("--tiny",) if dry else ()))
    checks = ("-m", "benchmarks.cuda.checks", "{work}/logs/checks", *(("--tiny",) if dry else ()))
    return [
        build(dry),
        Stage("smoke", 5 if dry else 60, (smoke,)),
        # also fills the compilers' caches; what is slow in it is cut, so that something is timed in the first call
        Stage("checks", 60 if dry else 100, (checks,)),
        suites("gemm", 45, "gemm", only="XL"),
        tune("tune", "XL"),
        on_gpu("products", 150, "-m", "benchmarks.blas_lt", "{work}/products.jsonl", "--seconds", "140", "--keep"),
        suites("ops", 60, "ops", only="XL"),
        suites("model", 60, *RACES["model"][0], only=RACES["model"][1]),
        suites("training", 60, "training", only="XL or large"),
        suites("optimizer", 30, "optimizer", only="XL"),
        suites("t2v", 60, "t2v", only="512"),
        suites("fp8", 60, "fp8"),
        suites("int8", 60, "int8"),
        # torch.compile takes minutes for 28 blocks in one graph, and a case that is cut off begins anew
        suites("whole-graph", 120, *RACES["whole-graph"][0], only=RACES["whole-graph"][1]),
        suites("reduce-overhead", 150, "model", only="XL and reduce"),
        suites("model-one-clip", 60, "model", only="XL and 16-1 and not autotune and not whole"),
        suites("tokens", 60, "tokens"),
        suites("flexdit", 60, "flexdit", only="XL"),
        suites("vqgan", 60, "vqgan"),
        suites("sampling", 60, "sampling", only="XL"),
        suites("memory", 60, "memory"),
        suites("scaling", 60, "scaling"),
        suites("autotune", 400, "model", only="XL and autotune"),
        suites("rest", 150, "model", "training", "sampling", "block", "gemm", only="not XL"),
        suites("ops-B", 60, "ops", "conv_transpose3d", only="not XL"),
        on_gpu("tests", 120, "-m", "benchmarks.cuda.shards", "{work}/tests.done"),
        tune("tune-B", "B"),
        on_gpu("sanitize", 120, "-m", "benchmarks.cuda.shards", "{work}/sanitize.done", "memcheck", "racecheck"),
    ]


def build(dry: bool) -> Stage:
    """Against the torch that is there: nothing is fetched, nothing is replaced."""
    report = ("-c", "from latte_fast import info; print(info.report())")
    install = ("-m", "benchmarks.cuda.build")
    return Stage("build", 5 if dry else 60, (report,) if dry else (install, report), always=True)


def chosen(stages: list[Stage], names: Iterable[str]) -> list[Stage]:
    """The stages of these names in the plan's order, all without any; ValueError for one that there is not."""
    names = list(names)
    known = [stage.name for stage in stages]
    for name in names:
        if name not in known:
            raise ValueError(f"{name}: no such stage; there are {', '.join(known)}")
    return [stage for stage in stages if not names or stage.name in names]
