"""The build: a wheel from an isolated environment imports elsewhere, and nothing missing costs the install."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from latte_fast import _ext

ROOT = Path(__file__).parents[1]


def checkout(target: Path) -> Path:
    """The files of the repository that a build reads."""
    target.mkdir()
    for name in ("latte_fast", "csrc", "kernels"):
        shutil.copytree(
            ROOT / name, target / name, ignore=shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


def build_wheel(source: Path, **env: str) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(source / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((source / "dist").glob("*.whl"))


def test_a_changed_header_rebuilds_what_reads_it(tmp_path: Path) -> None:
    """Nothing is built twice; a header's readers and nothing else when it changes; all when a flag does."""
    for name in ("setuptools", "pybind11", "ninja"):
        pytest.importorskip(name)
    if shutil.which("g++") is None:
        pytest.skip("no g++, whose preprocessor says what reads which header")
    source, log = checkout(tmp_path / "source"), tmp_path / "log"
    fake = tmp_path / "c++"
    fake.write_text(
        f"""#!{sys.executable}
import subprocess, sys
from pathlib import Path
args = sys.argv[1:]
out = args[args.index("-o") + 1]
with open({str(log)!r}, "a") as file:
    file.write(out + chr(10))
if "-c" in args:
    depfile = args[args.index("-MF") + 1]
    includes = [a for a in args if a.startswith(("-I", "-D", "-std"))]
    given = args[args.index("-c") + 1]
    subprocess.run(["g++", "-MM", "-MT", out, "-MF", depfile, *includes, given], check=True)
Path(out).write_bytes(b"")
"""
    )
    fake.chmod(0o755)

    def built(**env: str) -> list[str]:
        log.write_text("")
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        given = os.environ | {"CXX": str(fake), "LATTE_FAST_CUDA": "0"} | env
        done = subprocess.run(command, capture_output=True, text=True, cwd=source, env=given)
        assert done.returncode == 0 and "built without" not in done.stdout, done.stdout + done.stderr
        return sorted(log.read_text().split())

    levels = ("portable", "avx2", "avx512", "avx512bf16", "amx")
    sources = {path.stem for path in (source / "csrc/cpu").glob("*.cpp")}
    objects = {f"{stem}.{level}.o" for stem in sources for level in levels}
    assert set(built()) == objects | {"bindings.o", "_C.so"}
    told = json.loads((source / "latte_fast/_build_info.json").read_text())
    assert (told["levels"], told["cuda_reason"]) == ([*levels], "LATTE_FAST_CUDA=0")  # what doctor reads, in place too
    assert built() == []
    (source / "csrc/cpu/rows_bwd.h").touch()
    rows = {f"{stem}.{level}.o" for stem in sources if stem in ROWS for level in levels}
    assert set(built()) == rows | {"_C.so"}
    (source / "csrc/cuda/bindings.h").touch()
    assert built() == []  # it is read where CUDA is built
    assert set(built(LATTE_FAST_CXX_FLAGS="-g")) == objects | {"bindings.o", "_C.so"}


# the sources that read csrc/cpu/rows_bwd.h
ROWS = ("gate_residual", "gate_residual_norm_modulate", "norm_modulate", "pooled_norm")


def test_no_level_is_missing_for_want_of_code_that_compiles() -> None:
    """A compiler may refuse a flag; an error in the sources, or of the compiler over them, is ours."""
    for level, why in _ext.build_info().get("refused", {}).items():
        assert "csrc/" not in why and "bug report" not in why, f"{level}: {why}"


@pytest.mark.slow
def test_wheel_imports_in_another_environment(tmp_path: Path) -> None:
    wheel = build_wheel(checkout(tmp_path / "source"))
    names = zipfile.ZipFile(wheel).namelist()
    assert any(n.startswith("latte_fast/_C") for n in names)
    assert "latte_fast/kernels/__init__.py" in names
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    # the dependencies come from this environment, the package from the wheel
    paths = [p for p in sys.path if p.endswith("site-packages")]
    code = (
        f"import sys; sys.path += {paths!r}\n"
        "import latte_fast, latte_fast.kernels; from latte_fast import _ext\n"
        "assert 'env/lib' in latte_fast.__file__, latte_fast.__file__\n"
        "assert 'env/lib' in latte_fast.kernels.__file__; _ext.load()"
    )
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path / "env")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["no compiler", "no nvcc", "refused flags"])
def test_what_is_missing_costs_speed_not_the_install(case: str, tmp_path: Path) -> None:
    source = checkout(tmp_path / "source")
    env = {"LATTE_FAST_CUDA": "0"}
    if case == "no compiler":
        env |= {"CXX": "/nonexistent/c++", "CC": "/nonexistent/cc"}
    if case == "refused flags":
        fake = tmp_path / "picky-c++"
        fake.write_text('#!/bin/sh\ncase "$*" in *amx*) echo no amx here >&2; exit 1;; esac\nexec g++ "$@"\n')
        fake.chmod(0o755)
        env["CXX"] = str(fake)
    wheel = zipfile.ZipFile(build_wheel(source, **env))
    info = json.loads(wheel.read("latte_fast/_build_info.json"))
    built = any(n.startswith("latte_fast/_C") for n in wheel.namelist())
    assert built == (case != "no compiler")
    assert bool(info["error"]) == (case == "no compiler")
    assert "LATTE_FAST_CUDA=0" in info["cuda_reason"] or case == "no compiler"
    assert ("amx" in info["refused"]) == (case == "refused flags")


@pytest.mark.slow
@pytest.mark.parametrize("want", ["1", "auto"])
def test_nvcc_absent(want: str, tmp_path: Path) -> None:
    """LATTE_FAST_CUDA=1 demands it and fails; auto installs without and keeps the reason and the command."""
    if Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("nvcc is at its standard place, where setup.py finds it without PATH")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("g++", "gcc", "as", "ld", "sh", "uname"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    source = checkout(tmp_path / "source")
    env = {"PATH": str(tools), "LATTE_FAST_CUDA": want, "CUDA_HOME": "", "CUDA_PATH": ""}
    if want == "1":
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env)
        assert done.returncode != 0
        assert "LATTE_FAST_CUDA=1: nvcc was not found" in done.stdout + done.stderr
        return
    info = json.loads(zipfile.ZipFile(build_wheel(source, **env)).read("latte_fast/_build_info.json"))
    assert "nvcc was not found" in info["cuda_reason"] and "LATTE_FAST_CUDA=1 pip install -e ." in info["cuda_reason"]
    assert info["levels"] and info["cuda"] is None


def test_extension_includes_no_torch_header() -> None:
    for path in (p for p in (ROOT / "csrc").rglob("*") if p.is_file()):
        text = path.read_text()
        assert "torch/" not in text and "ATen" not in text and "c10/" not in text, path.name
