"""The import arrows of the architecture, held by reading every import statement; and that importing stays inert."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EVERYTHING = {"*"}
# layer: the layers it may import; a layer may always import itself
ARROWS = {
    "config": set(),
    "files": set(),
    "cost": {"config"},
    "reference": {"config"},
    "kernels": set(),
    "_ext": set(),
    "backends": {"config"},
    "ops": {"config", "backends", "kernels", "_ext", "reference.functional"},
    "modules": {"config", "backends", "ops"},
    "models": {"config", "files", "backends", "modules"},
    "diffusion": {"ops"},
    "data": {"config", "files"},
    "evaluation": {"files", "data"},
    "training": {"config", "files", "models", "data", "diffusion"},
    "reordering": set(),
    "testing": {"config", "backends", "reference", "reordering"},
    "results": {"files"},
    "info": EVERYTHING,
    "cli": EVERYTHING,
    "__main__": {"cli"},
}
# what a layer may import from outside, where that is restricted
OUTSIDE = {"reference": {"torch", "numpy", "einops"}, "kernels": {"torch", "triton"}, "_ext": {"torch"}}


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def sources() -> list[tuple[str, Path]]:
    found = [("latte_fast." + ".".join(p.relative_to(ROOT / "latte_fast").with_suffix("").parts), p)
             for p in sorted((ROOT / "latte_fast").rglob("*.py"))]  # fmt: skip
    found += [(f"latte_fast.kernels.{p.stem}", p) for p in sorted((ROOT / "kernels").glob("*.py"))]
    return [(name.removesuffix(".__init__"), path) for name, path in found]


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrow"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize(("module", "path"), sources(), ids=lambda v: v if isinstance(v, str) else "")
def test_imports_follow_arrows(module: str, path: Path) -> None:
    layer = layer_of(module)
    if not layer:
        return
    assert layer in ARROWS, f"{module}: layer {layer} is not in the architecture"
    allowed = ARROWS[layer]
    for name in imports(path):
        if name.split(".")[0] != "latte_fast":
            outside = name.split(".")[0]
            assert layer not in OUTSIDE or outside in OUTSIDE[layer] | sys.stdlib_module_names, f"{module}: {outside}"
            continue
        target = name.removeprefix("latte_fast.")
        same = target.split(".")[0] == layer
        built = layer == "_ext" and target == "_C"
        drawn = allowed == EVERYTHING or any(target == a or target.startswith(a + ".") for a in allowed)
        assert same or built or drawn, f"{module} imports {name}: no such arrow"


@pytest.mark.parametrize("path", [p for _, p in sources()] + sorted((ROOT / "csrc").glob("*")), ids=lambda p: p.name)
def test_file_size(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500, f"{path.name} is above 500 lines"


def test_setup_size() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) < 100


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
