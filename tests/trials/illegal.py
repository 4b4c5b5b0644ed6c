"""Random calls of the ops and models, most of them illegal: what they raise, and whether what they serve is right.

python -m tests.trials.illegal [CALLS] [SEED]
"""

import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latte_fast import Latte, LatteIMG, LatteT2V, ops, testing, use_backend
from latte_fast.backends import BackendUnavailable
from latte_fast.models.flexdit import FlexLatte, FlexLatteT2V
from tests.helpers import tiny_vqgan

ALLOWED = (TypeError, ValueError, BackendUnavailable)


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape)


EXAMPLES: dict[str, Callable[[], dict[str, Any]]] = {
    "norm_modulate": lambda: {"x": tensor(2, 3, 4, 16), "shift": tensor(2, 16), "scale": tensor(2, 16), "eps": 1e-6,
                              "out_dtype": None},
    "gate_residual": lambda: {"x": tensor(2, 3, 4, 16), "y": tensor(2, 3, 4, 16), "gate": tensor(2, 16)},
    "gate_residual_norm_modulate": lambda: {"x": tensor(2, 3, 4, 16), "y": tensor(2, 3, 4, 16), "gate": tensor(2, 16),
                                            "shift": tensor(2, 16), "scale": tensor(2, 16), "eps": 1e-6,
                                            "y_bias": tensor(16), "pos": tensor(3, 1, 16), "out_dtype": None},
    "axis_attention": lambda: {"q": tensor(2, 3, 4, 2, 8), "k": tensor(2, 3, 4, 2, 8), "v": tensor(2, 3, 4, 2, 8),
                               "axis": "time", "rope": (tensor(3, 4), tensor(3, 4)), "scale": 0.5,
                               "key_mask": torch.tensor([[True, False, True], [True, True, True]])},
    "axis_attention_qkv": lambda: {"qkv": tensor(2, 3, 4, 3, 2, 8), "axis": "space", "rope": None, "scale": None},
    "linear_gelu": lambda: {"x": tensor(2, 3, 16), "w": tensor(8, 16), "b": tensor(8)},
    "bias_gelu": lambda: {"u": tensor(2, 3, 16), "b": tensor(16)},
    "mlp_layer": lambda: {"h": tensor(2, 3, 4, 16), "w1": tensor(8, 16), "b1": tensor(8), "w2": tensor(16, 8)},
    "attention_layer": lambda: {"h": tensor(2, 3, 4, 16), "w": tensor(48, 16), "b": tensor(48), "heads": 2,
                                "axis": "space", "rope": None},
    "conv_transpose3d": lambda: {"x": tensor(1, 4, 2, 3, 3), "w": tensor(4, 2, 3, 3, 3), "b": tensor(2), "stride": 1,
                                 "padding": 1, "output_padding": 0, "groups": 1, "dilation": 1, "pad_mode": "zeros"},
    "norm_silu_halo": lambda: {"x": tensor(2, 3, 2, 4, 4), "scale": tensor(2, 3), "shift": tensor(2, 3),
                               "pads": (1, 0, 1, 1, 2, 0)},
    "nearest_code": lambda: {"z": tensor(12, 16), "codes": tensor(9, 16)},
    "causal_attention": lambda: {"qkv": tensor(2, 5, 3, 2, 8), "prefix": 2},
    "small_linear": lambda: {"x": tensor(2, 16), "weight": tensor(8, 16), "bias": tensor(8), "norm_weight": tensor(16),
                             "norm_bias": tensor(16), "residual": tensor(2, 8), "gelu": True, "eps": 1e-5},
    "small_linear.int8": lambda: {"x": tensor(2, 16), "weight": torch.randint(-127, 128, (8, 16), dtype=torch.int8),
                                  "bias": tensor(8), "residual": tensor(2, 8), "weight_scale": tensor(8)},
    "decode_attention": lambda: {"qkv": tensor(2, 3, 2, 8), "cache": tensor(2, 2, 2, 5, 8),
                                 "position": torch.tensor([3]), "scale": 0.5},
    "pooled_norm": lambda: {"x": tensor(2, 3, 4, 16), "shift": tensor(2, 16), "scale": tensor(2, 16), "axis": "space",
                            "eps": 1e-6, "out_dtype": None},
    "rows_fp8": lambda: {"x": tensor(2, 3, 16)},
    "norm_modulate_fp8": lambda: {"x": tensor(2, 3, 4, 16), "shift": tensor(2, 16), "scale": tensor(2, 16),
                                  "eps": 1e-6},
    "gate_residual_norm_modulate_fp8": lambda: {"x": tensor(2, 3, 4, 16), "y": tensor(2, 3, 4, 16),
                                                "gate": tensor(2, 16), "shift": tensor(2, 16), "scale": tensor(2, 16),
                                                "eps": 1e-6, "y_bias": tensor(16), "pos": tensor(3, 1, 16)},
    "bias_gelu_fp8": lambda: {"u": tensor(2, 3, 16), "b": tensor(16), "factor": tensor(16)},
    "rows_int8": lambda: {"x": tensor(2, 3, 16), "unsigned": False},
    "norm_modulate_int8": lambda: {"x": tensor(2, 3, 4, 16), "shift": tensor(2, 16), "scale": tensor(2, 16),
                                   "eps": 1e-6, "unsigned": True},
    "gate_residual_norm_modulate_int8": lambda: {"x": tensor(2, 3, 4, 16), "y": tensor(2, 3, 4, 16),
                                                 "gate": tensor(2, 16), "shift": tensor(2, 16), "scale": tensor(2, 16),
                                                 "eps": 1e-6, "y_bias": tensor(16), "pos": tensor(3, 1, 16),
                                                 "unsigned": False},
    "bias_gelu_int8": lambda: {"u": tensor(2, 3, 16), "b": tensor(16), "factor": tensor(16), "unsigned": True},
    "linear_int8": lambda: {"x": tensor(2, 3, 16).to(torch.int8), "x_scale": tensor(2, 3, 1).abs(),
                            "weight": tensor(8, 16).to(torch.int8), "weight_scale": tensor(8).abs(), "bias": tensor(8),
                            "out_dtype": torch.bfloat16},
    "adamw_ema": lambda: {"weights": [tensor(4, 8), tensor(8)], "grads": [tensor(4, 8), tensor(8)],
                          "moments": [tensor(4, 8), tensor(8)], "squares": [tensor(4, 8) ** 2, tensor(8) ** 2],
                          "steps": [torch.tensor(1.0), torch.tensor(2.0)], "averages": [tensor(4, 8), tensor(8)],
                          "copies": [tensor(4, 8).bfloat16(), tensor(8).bfloat16()], "lr": 1e-3, "beta1": 0.9,
                          "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "decay": 0.9},
}  # fmt: skip
# arguments that an op writes in place
WRITTEN = {"decode_attention": ("cache",), "adamw_ema": ("weights", "moments", "squares", "averages", "copies")}
SMALL: dict[str, Any] = {"input_size": 4, "patch_size": 2, "in_channels": 2, "hidden_size": 16, "depth": 2,
                         "num_heads": 2, "num_frames": 2, "num_classes": 5, "extras": 2}  # fmt: skip
TEXT: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "num_layers": 1,
                        "sample_size": 4, "caption_channels": 12, "video_length": 2}  # fmt: skip
LATTE: dict[str, Callable[[], dict[str, Any]]] = {
    "Latte": lambda: {"x": tensor(2, 2, 2, 4, 4), "t": torch.tensor([3, 9]), "y": torch.tensor([0, 4])},
    "Latte.forward_with_cfg": lambda: {"x": tensor(2, 2, 2, 4, 4), "t": torch.tensor([3, 9]), "y": torch.tensor([0, 4]),
                                       "cfg_scale": 2.0},
    "LatteIMG": lambda: {"x": tensor(2, 3, 2, 4, 4), "t": torch.tensor([3, 9]), "y": torch.tensor([0, 4]),
                         "y_image": torch.tensor([[1], [2]]), "use_image_num": 1},
    "LatteT2V": lambda: {"hidden_states": tensor(2, 4, 2, 4, 4), "timestep": torch.tensor([3, 9]),
                         "encoder_hidden_states": tensor(2, 5, 12), "encoder_attention_mask": torch.ones(2, 5),
                         "return_dict": False},
    "FlexLatte": lambda: {"x": tensor(2, 2, 2, 6, 6), "t": torch.tensor([3, 9]), "y": torch.tensor([0, 4]), "side": 2},
    "FlexLatte.forward_with_cfg": lambda: {"x": tensor(2, 2, 2, 6, 6), "t": torch.tensor([3, 9]),
                                           "y": torch.tensor([0, 4]), "cfg_scale": 2.0, "side": None},
    "FlexLatteT2V": lambda: {"hidden_states": tensor(2, 4, 2, 8, 8), "timestep": torch.tensor([3, 9]),
                             "encoder_hidden_states": tensor(2, 5, 12), "encoder_attention_mask": torch.ones(2, 5),
                             "side": 2, "return_dict": False},
    "VQGAN.encode": lambda: {"x": tensor(1, 3, 4, 8, 8).clamp(-1, 1)},
    "VQGAN.decode": lambda: {"indices": torch.randint(0, 40, (1, 2, 2, 2))},
}  # fmt: skip
FLEX: dict[str, Any] = {"input_size": 6, "depth": 6, "layout": "PDGSRD", "sides": (1, 2)}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "Latte": lambda: testing.refill(Latte(**SMALL)),
    "LatteIMG": lambda: testing.refill(LatteIMG(**SMALL)),
    "LatteT2V": lambda: testing.refill(LatteT2V(**TEXT)),
    "FlexLatte": lambda: testing.refill(FlexLatte(**SMALL | FLEX)),
    "FlexLatteT2V": lambda: testing.refill(
        FlexLatteT2V(**TEXT | {"num_layers": 4, "sample_size": 8, "layout": "PGSR", "sides": (1, 2)})
    ),
    "VQGAN": lambda: tiny_vqgan.pair()[0],
}
ODD: list[Any] = [None, "x", b"x", 3, -1, 0, 2.5, float("nan"), float("inf"), True, [], [1.0, 2.0], (1, 2), {},
                  object(), np.zeros((2, 16), np.float32), torch.float16, torch.int64, "space", "time",
                  10**30]  # fmt: skip
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.complex64,
          torch.uint8, torch.float8_e4m3fn)  # fmt: skip


def spoiled(x: Any, rng: random.Random) -> Any:
    """Returns another value for an argument."""
    if isinstance(x, list) and x and rng.random() < 0.75:
        place = rng.randrange(len(x))
        return [spoiled(one, rng) if i == place else one for i, one in enumerate(x)]
    if not isinstance(x, Tensor) or rng.random() < 0.25:
        return rng.choice(ODD)
    ways: list[Callable[[], Any]] = [
        lambda: x.to(rng.choice(DTYPES)),
        lambda: x.to("meta"),
        lambda: x[:1],
        lambda: x[:0],
        lambda: x.transpose(0, -1),
        lambda: x.flatten(),
        lambda: x[None],
        lambda: x[..., :-1],
        lambda: x[..., ::2],
        lambda: x.new_zeros(()),
        lambda: x.repeat_interleave(2, -1)[..., ::2],
        lambda: x[:1].expand(3, *x.shape[1:]),
        lambda: x.to_sparse(),
        lambda: x.requires_grad_() if x.is_floating_point() else x,
        lambda: torch.full_like(x, float("nan")) if x.is_floating_point() else x,
        lambda: torch.full_like(x, -float("inf")) if x.is_floating_point() else x,
        lambda: x.tolist(),
        lambda: x.numpy(),
        lambda: -x if x.dtype != torch.bool else x,
        lambda: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
        lambda: torch.nn.Parameter(x) if x.is_floating_point() else x,
        lambda: torch._conj(x.to(torch.complex64)),
        lambda: x + 10,
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return rng.choice(ways)()
        except (RuntimeError, TypeError, IndexError):
            return None


def outs(x: Any) -> list[Tensor]:
    return [y for y in (x if isinstance(x, (tuple, list)) else (x,)) if isinstance(y, Tensor)]


def agree(got: Any, want: Any) -> bool:
    """Whether served numbers are the oracle's, to what its dtype holds; the meta device has none."""
    got, want = outs(got), outs(want)
    if len(got) != len(want):
        return False
    for a, b in zip(got, want, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            return False
        if a.is_meta:
            continue
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return False
            continue
        size = float(b.detach().float().nan_to_num(0, 0, 0).abs().max()) if b.numel() else 0.0
        eps = torch.finfo(a.dtype).eps
        limit = max(64 * eps, 1e-6 if a.dtype == torch.float32 else 0) * max(size, 1e-30)
        if not torch.allclose(a.detach().double(), b.detach().double(), rtol=16 * eps, atol=limit, equal_nan=True):
            return False
    return True


def copied(x: Any) -> Any:
    """What an op may write in without changing what the oracle is given; what is no dense tensor stays itself."""
    if isinstance(x, list):
        return [copied(one) for one in x]
    dense = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_quantized and not x.requires_grad
    return x.clone() if dense else x


class Callee:
    """An op or a model, and the oracle's answer to the same arguments."""

    def __init__(self, name: str):
        self.name = name
        # a LatteIMG or a FlexLatte speaks as the Latte that it is, of its side as FlexLatte
        words = (*name.split("."), name.split(".")[0].replace("IMG", "").replace("Flex", ""), "FlexLatte")
        self.prefixes = tuple(f"{word}: " for word in words)
        if name in EXAMPLES:
            self.example = EXAMPLES[name]
            return
        self.example = LATTE[name]
        kind, _, self.method = name.partition(".")
        torch.manual_seed(0)
        self.model = MODELS[kind]().eval()

    def __call__(self, **given: Any) -> Any:
        if self.name in EXAMPLES:
            written = {name: copied(given[name]) for name in WRITTEN.get(self.name, ())}
            out = getattr(ops, self.name.split(".")[0])(**given | written)
            return [*outs(out), *(t for x in written.values() for t in outs(x))]
        return (getattr(self.model, self.method) if self.method else self.model)(**given)

    def oracle(self, **given: Any) -> Any:
        with use_backend("reference"):
            return self(**given)


def trial(calls: int, seed: int) -> tuple[Counter, dict[str, tuple[str, str]]]:
    """Returns counts of verdicts, and the first call of every kind that went wrong."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    callees = [Callee(name) for name in (*EXAMPLES, *LATTE)]
    counts: Counter = Counter()
    wrong: dict[str, tuple[str, str]] = {}
    for _ in range(calls):
        callee = rng.choice(callees)
        given = callee.example()
        for name in rng.sample(sorted(given), min(len(given), rng.choice((1, 1, 1, 2)))):
            given[name] = spoiled(given[name], rng)
        shown = {n: f"{v.dtype} {tuple(v.shape)} {v.device}" if isinstance(v, Tensor) else repr(v)[:40]
                 for n, v in given.items()}  # fmt: skip
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = callee(**given)
        except ALLOWED as error:
            counts["refused"] += 1
            if not str(error).startswith(callee.prefixes):
                counts["refused under another name"] += 1
                wrong.setdefault(f"{callee.name}: name: {str(error)[:60]}", (str(error)[:200], str(shown)))
            continue
        except Exception as error:
            counts["other errors"] += 1
            key = f"{callee.name}: {type(error).__name__}: {str(error)[:60]}"
            wrong.setdefault(key, (str(error)[:200], str(shown)))
            continue
        counts["served"] += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                want = callee.oracle(**given)
        except Exception as error:
            counts["served, where the oracle refuses"] += 1
            wrong.setdefault(f"{callee.name}: oracle {str(error)[:50]}", (str(error)[:200], str(shown)))
            continue
        if not agree(got, want):
            counts["served with other numbers"] += 1
            wrong.setdefault(f"{callee.name}: numbers {rng.random()}", ("", str(shown)))
    return counts, wrong


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    counts, wrong = trial(calls, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    for key, (error, shown) in sorted(wrong.items()):
        print(f"{key}\n    {error}\n    {shown}")
    print(f"{calls} calls: {dict(counts)}")


if __name__ == "__main__":
    main()
