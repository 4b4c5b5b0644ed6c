"""What surrounds the kernels: forced instruction levels, fork, DataLoader workers, the thread count."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from latte_fast import _ext, ops, use_backend

pytestmark = pytest.mark.skipif(_ext.why_not_built() is not None, reason=str(_ext.why_not_built()))

LEVELS = ["portable", "avx2", "avx512", "avx512bf16", "amx"]
FILES = ["test_rows.py", "test_bias_gelu.py", "test_axis_attention.py"]


def python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("level", LEVELS[:-1])
def test_forced_level(level):
    """Every op at a lower level, on a preset's width and the pairwise cells of width 72."""
    own = _ext.load().isa()
    if level == own:
        pytest.skip(f"{level} is this machine's own level, which every other test runs")
    code = "from latte_fast import _ext; print(_ext.load().isa())"
    found = python(code, LATTE_FAST_ISA=level) if LEVELS.index(level) < LEVELS.index(own) else own
    if found != level:
        pytest.skip(f"this machine or build has no {level}, only {found}")
    here = os.path.dirname(__file__)
    # all levels compile one source for double, of which one check of each kind is enough
    double = "(gradcheck and (True or rows) and not 1 and not 6)"
    chosen = f"test_bias_gelu or writes_nothing or {double} or (packed_presets and 72 and bf16) or (pairwise and 72)"
    files = [os.path.join(here, f) for f in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, "-k", chosen, "-m", "not slow"],
        env={**os.environ, "LATTE_FAST_ISA": level},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_unknown_level_is_refused():
    code = "from latte_fast import _ext\ntry: _ext.load().isa()\nexcept ValueError as error: print(error)\n"
    assert "LATTE_FAST_ISA must be" in python(code, LATTE_FAST_ISA="sse9")


def sample() -> torch.Tensor:
    torch.manual_seed(0)
    qkv = torch.randn(1, 4, 64, 3, 2, 64)
    with use_backend("cpu"):
        y = ops.axis_attention_qkv(qkv, "space")
        return ops.bias_gelu(ops.norm_modulate(y, torch.ones(1, 128), torch.ones(1, 128)), torch.ones(128))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_fork():
    """libgomp's pool does not survive a fork; the kernels run on, on one thread."""
    want = sample()
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(2)
        os._exit(0 if torch.equal(sample(), want) else 1)
    assert os.waitpid(pid, 0)[1] == 0


class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return sample()


def test_dataloader_workers():
    want = sample()
    for batch in torch.utils.data.DataLoader(Samples(), batch_size=2, num_workers=2, timeout=60):
        assert all(torch.equal(row, want) for row in batch)


def test_set_num_threads_is_respected():
    """At one thread a large call starts none; at three it starts at most two beside its own."""
    code = """
import os, torch
from latte_fast._ext import bias_gelu
torch.set_num_threads({n})
u, b = torch.zeros(4096, 256), torch.zeros(256)
before = len(os.listdir("/proc/self/task"))
for _ in range(3): bias_gelu.bias_gelu_fwd(u, b)
print(len(os.listdir("/proc/self/task")) - before)
"""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("no /proc here")
    assert python(code.format(n=1)) == "0"
    assert int(python(code.format(n=3))) <= 2


def test_python_threads_agree():
    want = sample()
    got: list[torch.Tensor] = []
    workers = [threading.Thread(target=lambda: got.append(sample_again())) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert len(got) == 4 and all(torch.equal(g, want) for g in got)


def sample_again() -> torch.Tensor:
    qkv = torch.randn(1, 4, 64, 3, 2, 64, generator=torch.Generator().manual_seed(0))
    from latte_fast._ext import axis_attention, bias_gelu, norm_modulate

    q, k, v = qkv.unbind(3)
    y = axis_attention.axis_attention_fwd(q, k, v, "space", None, 64**-0.5, None, False)[0]
    h = norm_modulate.norm_modulate_fwd(y, torch.ones(1, 128), torch.ones(1, 128), 1e-6, y.dtype)
    return bias_gelu.bias_gelu_fwd(h, torch.ones(128))
