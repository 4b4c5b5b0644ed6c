"""Without a GPU the Triton kernels are tested interpreted, as triton.language has to know when first imported."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ImportError):
        import triton.language  # noqa: F401
    # only tests/kernels asks for the interpreter: nobody else's ops should find it to fall back on
    if before is None:
        del os.environ["TRITON_INTERPRET"]


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised AutoencoderKL, 8 pixels a latent, as diffusers saves it."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    widths = {"block_out_channels": (4, 4, 4, 8), "norm_num_groups": 2, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    folder = tmp_path_factory.mktemp("pipeline") / "vae"
    diffusers.AutoencoderKL(latent_channels=4, **widths, **blocks).save_pretrained(folder)
    return folder


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What stands for CUDA graphs where there is no GPU."""
    from tests.helpers.played import Played  # not before TRITON_INTERPRET is settled, and not for every test

    return Played.put_in_place(monkeypatch)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--draw", type=int, default=0, metavar="N", help="draw every test's random tensors anew, by N")


def pytest_configure(config: pytest.Config) -> None:
    """Adds N to every seed of torch's random numbers, in the test's own code and in what it calls."""
    shift = config.getoption("--draw") * 1_000_003
    if not shift:
        return
    seed_all = torch.manual_seed

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(seed + shift)

    torch.manual_seed = lambda seed: seed_all(seed + shift)
    torch.Generator = Generator  # type: ignore[misc]
