"""The import arrows of the architecture, held by reading every import statement; and that importing stays inert."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latte_fast.tracing import constant_in_graphs

ROOT = Path(__file__).parents[1]
EVERYTHING = {"*"}
# room: the rooms it may import, and does; a room may always import itself
ARROWS = {
    "config": set(),
    "flex_config": {"config"},
    "files": set(),
    "locks": {"files"},
    "cost_model": {"config"},
    "flex_cost": {"config", "cost_model", "flex_config"},
    "parallel_cost": {"config"},
    "reference": {"config", "flex_config"},
    "tracing": set(),
    "kernels": {"tracing"},
    "_ext": {"tracing"},
    "backends": set(),
    "ops": {"backends", "tracing", "kernels", "_ext", "reference.functional"},
    "modules": {"backends", "tracing", "ops"},
    "cuda_graphs": {"backends", "modules", "ops"},
    "models": {"config", "flex_config", "files", "backends", "cuda_graphs", "modules", "ops"},
    "diffusion": set(),
    "distributed": set(),
    "codecs": set(),
    "media": {"files"},
    "data": {"media", "codecs", "files", "locks"},
    "evaluation": {"data", "media", "distributed", "files", "runs", "models"},
    "quantization": {"modules", "backends"},
    "runs": {
        "models",
        "modules",
        "quantization",
        "codecs",
        "data",
        "diffusion",
        "distributed",
        "media",
        "files",
        "locks",
    },
    "optimizers": {"ops", "distributed"},
    "calibration": {"sampling", "runs", "modules", "diffusion", "files", "locks"},
    "sampling": {
        "cuda_graphs",
        "runs",
        "models",
        "modules",
        "codecs",
        "media",
        "data",
        "diffusion",
        "distributed",
        "files",
        "locks",
    },
    "token_films": {
        "cuda_graphs",
        "sampling",
        "runs",
        "models",
        "codecs",
        "media",
        "diffusion",
        "distributed",
        "files",
    },
    "long_films": {"sampling", "runs", "codecs", "media", "diffusion", "distributed", "files"},
    "integrations": {
        "models",
        "modules",
        "long_films",
        "sampling",
        "runs",
        "codecs",
        "diffusion",
        "distributed",
        "config",
        "quantization",
    },
    "training": {
        "cuda_graphs",
        "token_films",
        "sampling",
        "runs",
        "models",
        "codecs",
        "data",
        "diffusion",
        "distributed",
        "media",
        "evaluation",
        "quantization",
        "locks",
        "modules",
        "optimizers",
    },
    "reordering": set(),
    "testing": {"reordering"},
    "info": EVERYTHING,
    "cli": EVERYTHING,
    "__main__": {"cli"},
}
# what a room may import from outside, where that is restricted
OUTSIDE = {"reference": {"torch", "numpy", "einops"}, "kernels": {"torch", "triton"}, "_ext": {"torch"}}
PYAV = {"media"}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def sources() -> list[tuple[str, Path]]:
    found = [("latte_fast." + ".".join(p.relative_to(ROOT / "latte_fast").with_suffix("").parts), p)
             for p in sorted((ROOT / "latte_fast").rglob("*.py"))]  # fmt: skip
    found += [(f"latte_fast.kernels.{p.stem}", p) for p in sorted((ROOT / "kernels").glob("*.py"))]
    return [(name.removesuffix(".__init__"), path) for name, path in found]


@functools.cache
def imports(path: Path) -> list[str]:
    """Every name that a file imports, in functions and for types alone too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrow"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def test_imports_follow_arrows() -> None:
    for module, path in sources():
        check_arrows(module, path)


def check_arrows(module: str, path: Path) -> None:
    room = room_of(module)
    if not room:
        return
    assert room in ARROWS, f"{module}: room {room} is not in the architecture"
    allowed = ARROWS[room]
    for name in imports(path):
        outside = name.split(".")[0]
        if outside != "latte_fast":
            assert room not in OUTSIDE or outside in OUTSIDE[room] | sys.stdlib_module_names, f"{module}: {outside}"
            assert outside != "av" or room in PYAV, f"{module}: PyAV is imported by {', '.join(PYAV)} alone"
            continue
        target = name.removeprefix("latte_fast.")
        same = target.split(".")[0] == room
        built = room == "_ext" and target == "_C"
        drawn = allowed == EVERYTHING or any(target == a or target.startswith(a + ".") for a in allowed)
        assert same or built or drawn, f"{module} imports {name}: no such arrow"


def test_every_arrow_is_used() -> None:
    used = {(room_of(module), name.removeprefix("latte_fast.")) for module, path in sources() for name in imports(path)}
    for room, allowed in ARROWS.items():
        for arrow in allowed - EVERYTHING:
            hit = any(r == room and (name == arrow or name.startswith(arrow + ".")) for r, name in used)
            assert hit, f"no file of {room} imports {arrow}: the arrow is to be taken out"


def test_no_circle_between_files() -> None:
    known = {module for module, _ in sources()}

    def file_of(name: str) -> str | None:
        """The file that an imported name is read from."""
        return name if name in known else name.rpartition(".")[0] if name.rpartition(".")[0] in known else None

    graph = {
        module: {f for n in imports(path) if n != "latte_fast._C" and (f := file_of(n)) and f != module}
        for module, path in sources()
    }
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        assert module not in path, "circle: " + " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(graph[module]):
                walk(target, [*path, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])


def test_private_names_stay_in_their_file() -> None:
    for module, path in sources():
        for name in imports(path):
            private = [p for p in name.split(".") if p.startswith("_") and p not in ("_ext", "_C") and p[:2] != "__"]
            assert not (private and name.startswith("latte_fast.")), f"{module} imports {name}"


def test_families_are_told_apart_in_models_alone() -> None:
    """Elsewhere an adapter answers: no isinstance of a model or its configuration, no name that ends in a family's."""
    for module, path in sources():
        check_families(module, path)


def check_families(module: str, path: Path) -> None:
    if room_of(module) in (
        "models",
        "reference",
        "integrations",
        "config",
        "flex_config",
        "flex_cost",
        "parallel_cost",
        "cost_model",
        "",
    ):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            assert "Latte" not in ast.unparse(node), f"{module}: {ast.unparse(node)}"
        if isinstance(node, ast.Name | ast.FunctionDef):
            name = node.id if isinstance(node, ast.Name) else node.name
            assert not name.endswith("_t2v"), f"{module}: {name}"


def test_no_decorator_imports_torch_compile() -> None:
    """Those of torch.compiler import torch._dynamo where they stand, which takes longer than all of this package."""
    for module, path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            for decorator in getattr(node, "decorator_list", ()):
                written = ast.unparse(decorator)
                assert not written.startswith(("torch.compiler.", "torch._dynamo.")), f"{module}: @{written}"


def test_constant_in_graphs_is_what_torch_makes() -> None:
    def ours() -> None: ...

    def theirs() -> None: ...

    assert vars(constant_in_graphs(ours)) == vars(torch.compiler.assume_constant_result(theirs))


@pytest.mark.parametrize("room", ["training", "sampling"])
def test_rooms_stay_small(room: str) -> None:
    lines = sum(len(path.read_text().splitlines()) for module, path in sources() if room_of(module) == room)
    assert lines < 1500, f"{room} has {lines} lines"


def test_file_size() -> None:
    written = [p for _, p in sources()] + [p for p in (ROOT / "csrc").rglob("*") if p.is_file()]
    written += [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    for path in written:
        assert len(path.read_text().splitlines()) <= 500, f"{path.name} is above 500 lines"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_queries_no_gpu() -> None:
    assert run("import torch, latte_fast; print(torch.cuda.is_initialized())") == "False"


def test_import_needs_no_triton_and_no_extension() -> None:
    """Triton's own import, where it is installed, is torch's doing (torch.utils.flop_counter)."""
    code = (
        "import sys; sys.modules['triton'] = None; sys.modules['latte_fast._C'] = None\n"
        "import torch, latte_fast\n"
        "from latte_fast import _ext, ops\n"
        "x, g = torch.randn(2, 3, 8), torch.randn(2, 8)\n"
        "print(ops.norm_modulate(x, g, g).shape[1], 'pip install -e .' in _ext.why_not_built())"
    )
    assert run(code) == "3 True"


def test_kernels_folder_is_inert_at_top_level() -> None:
    run(
        "import kernels; assert kernels.__version__ == '0.0.0'; assert not hasattr(kernels, 'get_kernel')\n"
        "try: kernels.norm\nexcept AttributeError as e: assert 'latte_fast.kernels' in str(e)"
    )
    run("import latte_fast.kernels")
