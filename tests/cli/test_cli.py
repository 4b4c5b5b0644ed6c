"""The `latte-fast` command as a person runs it."""

import importlib
import importlib.util
import subprocess
import sys

import pytest
import torch

import latte_fast
from latte_fast.cli.main import COMMANDS


def run(*args: str, ok: bool = True) -> str:
    code = "import sys; from latte_fast.cli import main; sys.argv[0] = 'latte-fast'; main()"
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_version_and_the_module() -> None:
    assert run("--version") == f"latte_fast {latte_fast.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "latte_fast", "--version"], capture_output=True, text=True)
    assert done.stdout == f"latte_fast {latte_fast.__version__}\n", done.stderr


def run_without(packages: tuple[str, ...], *args: str) -> subprocess.CompletedProcess[str]:
    """Runs a command where these packages are not installed; prints what was imported besides."""
    code = f"import sys; sys.modules.update(dict.fromkeys({packages!r})); from latte_fast.cli import main\n"
    code += "import atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); main()"
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)


def test_help_lists_the_commands_and_imports_none() -> None:
    done = run_without(("torch", "av", "tyro", "diffusers", "numpy"), "--help")
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout
    none = run_without(("torch", "tyro"))
    assert none.returncode == 2 and none.stdout == done.stdout


def test_every_command_is_found_and_explains_itself() -> None:
    for name, about in COMMANDS.items():
        function = name.replace("-", "_")
        module = importlib.import_module(f"latte_fast.cli.{function}")
        command = module.command([]) if hasattr(module, "command") else getattr(module, function)
        assert command.__doc__ and about and not about.endswith(".")


def test_doctor_needs_neither_pyav_nor_tyro_nor_diffusers() -> None:
    done = run_without(("av", "tyro", "diffusers"), "doctor")
    assert done.returncode == 0 and "op x backend" in done.stdout, done.stderr


@pytest.mark.parametrize("args", [("sample", "runs/x"), ("train",), ("cost",), ("doctor", "--help")], ids=str)
def test_tyro_is_asked_for_by_name(args: tuple[str, ...]) -> None:
    done = run_without(("tyro",), *args)
    assert done.returncode == 1 and "pip install tyro" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("convert", ("latte-fast convert [-h] [OPTIONS] SOURCE OUT", "ucf.safetensors\n\nWith --pipeline ")),
        ("sample", ("[PATH]",)),
        ("plot", ("latte-fast plot [-h] RUN",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_help_names_what_stands_alone(command: str, shown: tuple[str, ...]) -> None:
    page = run(command, "--help")
    assert all(text in page for text in shown)


def test_doctor_gives_a_reason_for_every_no() -> None:
    out = run("doctor")
    for word in ("versions", "GPU", "extension", "norm_modulate", "axis_attention", "reference", "triton"):
        assert word in out
    assert "WARNING" not in out  # one OpenMP runtime


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("demo", "--model", "Latte-Q/2"), "Latte-S/2"),
        (("demo", "--repeats", "0"), "at least 1"),
        (("fly",), "fly"),
        (("cost", "--model", "x"), "Latte-XL/2"),
        (("cost", "--size", "250"), "multiple of 16"),
        (("cost", "--tflops", "nan"), "cost: tflops and tb_per_s must be positive, and finite, got nan and 4.3"),
        (("cost", "--bytes-each", "0"), "cost: bytes_each must be at least 1, got 0"),
        (
            ("encode", "--kind", "videos", "--path", "x", "--out", "y", "--vae", "identity", "--device", "gpu0"),
            "encode: device must be like cpu, cuda or cuda:1, got gpu0",
        ),
    ],
)
def test_bad_arguments(args: tuple[str, ...], message: str) -> None:
    assert message in run(*args, ok=False)


def test_cost_prints_the_papers_count() -> None:
    assert "as the paper counts     5572.70 G" in run("cost", "--batch", "3")


def test_bench_says_how_to_get_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = importlib.import_module("latte_fast.cli.bench")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pytest_benchmark" else name)
    with pytest.raises(SystemExit, match=r"bench: needs pytest-benchmark: pip install 'latte_fast\[test\]'"):
        bench.bench(suites=("ops",))


def test_tune_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is there, so that tune would run")
    assert "needs a CUDA device" in run("tune", ok=False)
