"""Every model family on this device against its oracle in float64: results and gradients, in fp32 and in bf16.

python -m benchmarks.cuda.families [--tiny] prints a line a family: errors relative to the largest value, and the bound.
"""

import copy
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import latte_fast
from benchmarks.contenders import device
from latte_fast import reference, testing
from latte_fast.config import PRESETS

# of the largest value; gradients of weights sum over tens of thousands of rows
FP32 = 3e-6
Call = Callable[[nn.Module, torch.dtype], Tensor]
Case = tuple[nn.Module, nn.Module, Call]


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device())


def class_conditional(kind: str, tiny: bool, images: int = 0, **more: Any) -> Case:
    """Four blocks (a published layout's least for FlexLatte) of XL/2's width on 16 frames of 256 pixels."""
    given = PRESETS["Latte-XL/2"] | {"depth": 4, "num_frames": 16, "input_size": 32, "num_classes": 11, "extras": 2}
    given |= {"num_frames": 3, "input_size": 8, "hidden_size": 48, "num_heads": 2} if tiny else {}
    given |= more
    build = {"Latte": reference.latte.Latte, "LatteIMG": reference.latte.LatteIMG}.get(kind)
    oracle = (build or getattr(reference.flex_latte, kind))(**given)
    side, frames = given["input_size"], given["num_frames"]
    x, t = randn(2, frames + images, 4, side, side), torch.tensor([7, 801], device=device())
    y = torch.tensor([3, 10], device=device())
    keywords: dict[str, Any] = {"y": y}
    if images:
        keywords |= {"use_image_num": images, "y_image": y[:, None].repeat(1, images)}
    return oracle, getattr(latte_fast, kind)(**given), lambda m, dtype: m(x.to(dtype), t, **keywords)


def text(tiny: bool) -> Case:
    heads, width, side, frames = (2, 24, 8, 3) if tiny else (16, 72, 32, 16)
    given = {"num_attention_heads": heads, "attention_head_dim": width, "num_layers": 2, "sample_size": side,
             "cross_attention_dim": heads * width, "caption_channels": 64, "video_length": frames}  # fmt: skip
    x, words = randn(2, 4, frames, side, side), randn(2, 30, 64, seed=2)
    t = torch.tensor([7, 801], device=device())
    mask = (torch.arange(30) < torch.tensor([[30], [11]])).to(device())
    oracle, ours = reference.latte_t2v.LatteT2V(**given), latte_fast.LatteT2V(**given)

    def call(model: nn.Module, dtype: torch.dtype) -> Tensor:
        out = model(x.to(dtype), t, words.to(dtype), encoder_attention_mask=mask)
        return out if isinstance(out, Tensor) else out.sample

    return oracle, ours, call


def tokenizer(tiny: bool) -> Case:
    """The decoder alone: among rounded distances an encoder may pick another code."""
    given = {"n_hiddens": 4, "embedding_dim": 16, "n_codes": 64} if tiny else {"n_hiddens": 32}
    oracle, ours = reference.vqgan.VQGAN(**given), latte_fast.VQGAN(**given)
    with torch.no_grad():
        for p in oracle.parameters():
            if p.dim() == 5:
                p.normal_(std=(2 / p[0].numel()) ** 0.5)
    z = randn(1, *oracle.codebook.embeddings.shape[1:], 2, *(2 * (4 if tiny else 8,)))

    def call(model: nn.Module, dtype: torch.dtype) -> Tensor:
        if isinstance(model, latte_fast.VQGAN):
            return model.from_latents(z.to(dtype))
        return 2 * model.decoder(model.post_vq_conv(z.to(dtype)))  # type: ignore[operator, union-attr]

    return oracle, ours, call


def transformer(tiny: bool) -> Case:
    given: dict[str, Any] = {"vocab_size": 512, "block_size": 256, "n_layer": 4}
    given |= {"n_layer": 2, "n_head": 2, "n_embd": 32} if tiny else {}
    ours, oracle = latte_fast.TokenTransformer(**given), reference.token_transformer.TokenTransformer(**given)
    oracle.load_state_dict(ours.state_dict())
    tokens = torch.randint(512, (2, 256)).to(device())
    return oracle.eval(), ours.eval(), lambda m, dtype: m(tokens)


FAMILIES: dict[str, Callable[[bool], Case]] = {
    **{f"Latte, variant {v}": lambda tiny, v=v: class_conditional("Latte", tiny, variant=v) for v in (1, 2, 3, 4)},  # type: ignore[misc]
    "Latte, rotary": lambda tiny: class_conditional("Latte", tiny, time_pos="rope"),
    "Latte, all tokens": lambda tiny: class_conditional("Latte", tiny, conditioning="tokens"),
    "LatteIMG": lambda tiny: class_conditional("LatteIMG", tiny, images=3),
    "FlexLatte": lambda tiny: class_conditional(
        "FlexLatte", tiny, depth=8, layout="PP GSRD DD", sides=(2, 3) if tiny else (4, 6, 8)
    ),
    "LatteT2V": text,
    "VQGAN": tokenizer,
    "TokenTransformer": transformer,
}


def gradients(out: Tensor, model: nn.Module, dout: Tensor) -> dict[str, Tensor]:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(out, list(named.values()), dout.to(out.dtype), allow_unused=True)
    return {n: g for n, g in zip(named, found, strict=True) if g is not None}


def worst(got: dict[str, Tensor], want: dict[str, Tensor], dtype: torch.dtype) -> tuple[float, str]:
    """The largest error of a gradient over its largest value, and its name; zero ones by their own bound."""
    largest = max(g.abs().max().item() for g in want.values())
    errors = {}
    for name, exact in want.items():
        bound = 8 * torch.finfo(dtype).eps * largest
        if exact.abs().max() < bound:
            errors[name] = 0.0 if name in got and got[name].abs().max() < bound else float("inf")
        else:
            errors[name] = testing.relative_error(got[name], exact)
    name = max(errors, key=errors.__getitem__)
    return errors[name], name


def measure(case: Case) -> str:
    """Raises AssertionError where ours is further from float64 than the criterion lets it be."""
    oracle, ours, call = case
    if not isinstance(oracle, reference.token_transformer.TokenTransformer):
        testing.refill(oracle)
    oracle.eval(), ours.eval()  # no label is dropped
    ours.load_state_dict(oracle.state_dict())
    wide = copy.deepcopy(oracle).to(device(), torch.float64)
    exact = call(wide, torch.float64)
    dout = randn(*exact.shape, seed=3)
    grads = gradients(exact, wide, dout)
    line = []
    for dtype in (torch.float32, torch.bfloat16):
        results = {}
        for name, model in (("ours", ours), ("torch", oracle)):
            model = copy.deepcopy(model).to(device(), dtype)
            out = call(model, dtype)
            error, where = worst(gradients(out, model, dout), grads, dtype)
            results[name] = (testing.relative_error(out, exact), error, where)
        (out, grad, where), (their_out, their_grad, _) = results["ours"], results["torch"]
        line.append(
            f"{str(dtype)[6:]} output {out:.1e} (torch {their_out:.1e}), gradients {grad:.1e} ({their_grad:.1e})"
        )
        limits = (max(FP32, 2 * their_out), max(4 * FP32, 3 * their_grad)) if dtype == torch.float32 else (
            2 * their_out + torch.finfo(dtype).eps, 3 * their_grad + torch.finfo(dtype).eps)  # fmt: skip
        assert out <= limits[0] and grad <= limits[1], f"{line[-1]} at {where}; limits {limits[0]:.1e}, {limits[1]:.1e}"
    return "; ".join(line)


def main(tiny: bool) -> int:
    torch.backends.cudnn.allow_tf32 = False
    failed = 0
    for name, build in FAMILIES.items():
        began = time.perf_counter()
        torch.manual_seed(0)
        try:
            outcome = f"right: {measure(build(tiny))}"
        except Exception as error:
            failed += 1
            outcome = f"WRONG: {type(error).__name__}: {(str(error).strip() or repr(error)).splitlines()[0]}"
        print(f"{name}: {outcome}; {time.perf_counter() - began:.1f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main("--tiny" in sys.argv))
