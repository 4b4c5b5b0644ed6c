"""What decodes tokens, side by side: ours, torch's own ops, Hugging Face's GPT-2, the authors' loop, a bare read."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import contenders as sizes
from benchmarks.contenders import device, no_grad
from latte_fast import TokenTransformer, reference
from latte_fast.cuda_graphs import replay
from latte_fast.models.tats.decoder import Decoder, causal_context
from latte_fast.token_films.draw import Drawing
from latte_fast.token_films.steps import Steps

HALF, FULL = torch.bfloat16, torch.float32
# tokens of a lap, in the middle of a clip, where the cache is half full
LAP = 16


def given() -> dict[str, Any]:
    """The authors' sizes, and small ones where every benchmark is tried in a moment."""
    if sizes.SIDE < 32:
        return {"vocab_size": 64, "block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 32}
    return {"vocab_size": 16384, "block_size": 1024}


@functools.lru_cache(maxsize=1)
def models(dtype: torch.dtype) -> tuple[TokenTransformer, Any]:
    """Ours and the oracle with the same weights."""
    torch.manual_seed(0)
    ours = TokenTransformer(**given()).eval()
    oracle = reference.token_transformer.TokenTransformer(**given()).eval()
    oracle.load_state_dict(ours.state_dict())
    return ours.to(device(), dtype), oracle.to(device(), dtype)


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(given()["vocab_size"], (batch, length), device=device())


class Ours:
    """A clip decoded by the static cache: a call feeds LAP tokens at a clip's middle."""

    def __init__(self, model: TokenTransformer, start: Tensor):
        self.context, self.next = causal_context(start), start[:, 0].clone()
        self.decoder = Decoder(model, len(start), model.config.block_size)
        self.first = self.decoder.start(self.context)

    def __call__(self) -> Tensor:
        self.rewind()
        for _ in range(LAP):
            logits = self.decoder.step(self.next)
        return logits

    def rewind(self) -> None:
        count = self.context.tokens.shape[1]
        self.decoder.seek(count, count)


class Graph(Ours):
    """The same as the replay of a CUDA graph a token."""

    def __init__(self, model: TokenTransformer, start: Tensor):
        super().__init__(model, start)
        with torch.no_grad():
            self.replay, self.logits = replay.capture(
                lambda: self.decoder.advance(self.next), start.device, replay.new_pool()
            )

    def __call__(self) -> Tensor:
        self.rewind()
        for _ in range(LAP):
            self.replay()
        return self.logits


class Drawn:
    """LAP tokens drawn, one after the other: steps with temperature, top-k and top-p, as the package draws films."""

    def __init__(self, model: TokenTransformer, start: Tensor):
        self.context = causal_context(start[:, :1])
        codes = model.config.vocab_size
        self.steps = Steps(model, len(start), 0, codes, Drawing(1.0, min(2048, codes // 2), 0.92))
        self.shares = torch.full((len(start), LAP), 0.5, dtype=torch.float64, device=start.device)

    def __call__(self) -> Tensor:
        return self.steps.draw(self.context, self.shares, lambda n: None)


class Sdpa:
    """A step in torch's own ops, a static cache and SDPA over all of it with a mask, as torch.compile takes it."""

    def __init__(self, model: TokenTransformer, start: Tensor):
        ours = Ours(model, start)
        self.model, self.cache, self.next = model, ours.decoder.cache, ours.next
        self.start = torch.tensor([start.shape[1]], device=start.device)
        self.at = self.start.clone()

    def __call__(self) -> Tensor:
        self.at.copy_(self.start)
        for _ in range(LAP):
            logits = self.step(self.next, self.at)
            self.at += 1
        return logits

    def step(self, tokens: Tensor, at: Tensor) -> Tensor:
        model = self.model
        seen = (torch.arange(self.cache.shape[4], device=at.device) <= at)[None]  # (1, L)
        x = model.tok_emb(tokens) + model.pos_emb[0].index_select(0, at)  # (B, D)
        for block, (keys, values) in zip(model.blocks, self.cache, strict=True):
            attn, h = block.attn, block.ln1(x)
            q, k, v = (layer(h).unflatten(1, (attn.heads, 1, -1)) for layer in (attn.query, attn.key, attn.value))
            keys.index_copy_(2, at, k)
            values.index_copy_(2, at, v)
            y = nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
            x = x + attn.proj(y.flatten(1))
            x = x + block.mlp(block.ln2(x))
        return model.head(model.ln_f(x))


def compiled_sdpa(model: TokenTransformer, start: Tensor) -> Callable[[], Tensor] | str:
    """Returns the same compiled, where a GPU is, with CUDA graphs, or why it does not compile."""
    lap = Sdpa(model, start)
    torch._dynamo.reset()
    torch._dynamo.mark_static_address(lap.cache)  # or the graph would not be allowed to write into it
    lap.step = torch.compile(lap.step, mode="reduce-overhead", dynamic=False)  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            lap()
    except Exception as error:  # a compiler's errors have no base of their own
        return f"torch.compile failed: {(str(error).strip() or repr(error)).splitlines()[0]:.120}"
    return no_grad(lap)


class Gpt2:
    """Hugging Face's GPT-2 of the same sizes, its weights drawn, with its static cache."""

    def __init__(self, start: Tensor):
        from transformers import GPT2Config, GPT2LMHeadModel, StaticCache

        of = {"n_layer": 24, "n_head": 16, "n_embd": 1024} | given()
        config = GPT2Config(
            vocab_size=of["vocab_size"], n_positions=of["block_size"], n_embd=of["n_embd"], n_layer=of["n_layer"],
            n_head=of["n_head"], activation_function="gelu", bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        with torch.device(start.device):
            self.model = GPT2LMHeadModel(config).to(HALF).eval()
        self.cache = StaticCache(config=config, max_cache_len=of["block_size"])
        self.next, self.length = start[:, :1].clone(), start.shape[1]
        with torch.no_grad():
            self.step(start)

    def step(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, past_key_values=self.cache, use_cache=True).logits[:, -1]

    def __call__(self) -> Tensor:
        self.rewind()
        for _ in range(LAP):
            logits = self.step(self.next)
        return logits

    def rewind(self) -> None:
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.length)


class Gpt2Graph(Gpt2):
    """The same as the replay of a CUDA graph a token."""

    def __init__(self, start: Tensor):
        super().__init__(start)
        with torch.no_grad():
            self.replay, self.logits = replay.capture(lambda: self.step(self.next), start.device, replay.new_pool())

    def __call__(self) -> Tensor:
        self.rewind()
        for _ in range(LAP):
            self.replay()
        return self.logits


def made(make: Callable[[], Callable[[], Tensor]]) -> Callable[[], Any] | str:
    """Returns a contender, or why it cannot be made here."""
    try:
        return no_grad(make())
    except Exception as error:  # another version of the library costs its own row and no other
        return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]:.120}"


class Authors:
    """The same tokens by the authors' loop, which joins all keys and values anew at each step."""

    def __init__(self, model: Any, start: Tensor):
        self.model, self.next, self.length = model, start[:, :1], start.shape[1]
        with torch.no_grad():
            _, self.past = model.with_past(start, torch.arange(self.length, device=start.device), None)

    def __call__(self) -> Tensor:
        past = self.past
        for i in range(LAP):
            place = torch.tensor([self.length + i], device=self.next.device)
            logits, past = self.model.with_past(self.next, place, past)
        return logits[:, -1]


def weights_of(model: nn.Module) -> list[Tensor]:
    """Returns the weights that every step reads whole."""
    return [p.detach() for name, p in model.named_parameters() if name not in ("tok_emb.weight", "pos_emb")]


def read_bytes(model: nn.Module) -> int:
    return sum(w.nbytes for w in weights_of(model))


def read_of(model: nn.Module) -> Callable[[], object]:
    """Returns what reads all weights of a step once, LAP times: the sum of their bits as 64-bit numbers."""
    whole = torch.cat([w.flatten().view(torch.uint8) for w in weights_of(model)])
    words = whole[: len(whole) // 8 * 8].view(torch.int64)
    return lambda: [words.sum() for _ in range(LAP)]


def title() -> str:
    return "{n_layer} layers of {n_embd}, {block_size} tokens".format_map({"n_layer": 24, "n_embd": 1024} | given())
