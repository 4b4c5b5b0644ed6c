"""Without a GPU the Triton kernels are tested interpreted, as triton.language has to know when first imported."""

import contextlib
import os

import torch

if not torch.cuda.is_available():
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ImportError):
        import triton.language  # noqa: F401
    # only tests/kernels asks for the interpreter: nobody else's ops should find it to fall back on
    if before is None:
        del os.environ["TRITON_INTERPRET"]
