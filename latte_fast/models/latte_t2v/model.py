"""LatteT2V: text to video with the constructor, call, parameter names and numbers of diffusers and of upstream."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from latte_fast.config import LatteT2VConfig
from latte_fast.cuda_graphs.few_clips import replayed_if_few
from latte_fast.models.checks import EXTEND, check_keyword
from latte_fast.models.latte_t2v.block import BlockContextT2V, BlockT2V, Text
from latte_fast.models.latte_t2v.checks import check_inputs, checked_time, text_mask
from latte_fast.models.latte_t2v.parts import LATTE_T2V
from latte_fast.modules.caching import Caching
from latte_fast.modules.embed import (
    called_on_patches,
    embed_patches,
    space_table,
    stretch_time,
    time_table,
    timestep_wave,
)
from latte_fast.modules.linear import is_plain, share_storage, weight_of
from latte_fast.modules.modulation import Conditioning, ModulationTable, of_block
from latte_fast.modules.parts import Fused
from latte_fast.modules.prompt_cache import PromptCache, is_gathered
from latte_fast.modules.recompute import POLICIES, run_block
from latte_fast.modules.residual import Pending, add_and_norm, resolve
from latte_fast.modules.sequence import Parallel, Shards, Sharing
from latte_fast.modules.stack_reuse import StackReuse, with_reuse

RunBlocks = Callable[..., tuple[Tensor, Pending | None]]
TIME_CHANNELS = 256


class Output(NamedTuple):
    """The result of a call with return_dict=True."""

    sample: Tensor  # (B, C, F, H, W)


class Stack(NamedTuple):
    """What the blocks need besides their tokens."""

    modulation: Conditioning
    over_time: Conditioning  # without the images' rows
    space: BlockContextT2V
    temporal: bool  # whether the time blocks run
    frames: int  # of video, of the whole clip where ranks share it
    shards: Shards | None = None


class FastT2V(Fused, Sharing, Caching, nn.Module):
    """The forward of LatteT2V and of patched diffusers or upstream models, which have the same parameters."""

    # class attributes, so that a patched model has them too
    parts = LATTE_T2V
    recompute = "none"
    extend_time = "error"
    gradient_checkpointing = False
    replays_few_clips = True  # of themselves, as CUDA graphs; see cuda_graphs/few_clips.py
    stack_reuse: StackReuse | None = None  # set for a run with reuse, or by enable_cache
    modulation_table: ModulationTable | None = None  # set for a run with a table; see modules/modulation.py
    parallel: Parallel | None = None  # set by enable_parallelism
    config: Any

    @property
    def prompt_cache(self) -> PromptCache:
        """Cache of the projected text; made on first use, so that a patched model has it too."""
        return self.__dict__.setdefault("_prompt_cache", PromptCache())

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        enable_temporal_attentions: bool = True,
        return_dict: bool = True,
        *,
        use_image_num: int = 0,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Predicts noise and variance, (B, 2C, F, H, W); the last four keywords are upstream's and do nothing.

        Args:
            hidden_states: (B, C, F, H, W) latents; with images (B, C, F + n, H, W), the images last.
            timestep: (B,), (1,) or a number; (B, F) gives every frame a step of its own, images as well.
            encoder_hidden_states: (B, T, caption_channels); with images (B, 1 + n, T, caption_channels).
            encoder_attention_mask: (B, T), 1 where a token counts, or the bias (B, 1, T) that is 0 there and
                -10000 elsewhere; with images (B, 1 + n, T).
            enable_temporal_attentions: False skips the time blocks and the temporal table.
            return_dict: whether to return an object with `.sample` instead of a tuple.
            use_image_num: number n of images, which have captions of their own and skip all attention over time.
        """
        x, images = hidden_states, use_image_num
        check_inputs(self, x, encoder_hidden_states, images, return_dict)
        assert encoder_hidden_states is not None
        t = checked_time(timestep, x)
        mask = text_mask(encoder_attention_mask, encoder_hidden_states, images)
        sample = self.run(x, t, encoder_hidden_states, mask, enable_temporal_attentions, images)
        return self.output(sample) if return_dict else (sample,)

    def output(self, sample: Tensor) -> Any:
        return Output(sample)

    @replayed_if_few
    def run(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        mask: Tensor | None,
        temporal: bool,
        images: int,
        run_blocks: RunBlocks | None = None,
    ) -> Tensor:
        config, p = self.config, self.config.patch_size
        rows, columns = x.shape[3] // p, x.shape[4] // p
        proj = self.pos_embed.proj
        width = self.scale_shift_table.shape[-1]
        table = space_table(width, rows, columns, x.device, config.sample_size // p, max(config.sample_size // 64, 1))
        x = x.transpose(1, 2)  # (B, F, C, H, W)
        shards = self.shards_of(x, t, x.shape[1] - images, rows * columns, images)
        if shards is not None:
            x = shards.own_frames(x)
        x = embed_patches(x, proj) if is_plain(proj, nn.Conv2d) else called_on_patches(x, proj)  # (B, F, N, D)
        x = x + table.to(weight_of(proj).dtype)
        modulation: Conditioning
        if self.stack_reuse is not None:
            self.stack_reuse.begin(t)
        if self.modulation_table is not None:
            modulation = self.modulation_table.at(x.shape[0])
        else:
            time = self.embed_time(t.flatten())  # (G, D), G = B, or B*F where each frame has a step
            modulation = self.adaln_single.linear(silu(time)).unflatten(1, (6, -1))  # (G, 6, D)
        captions = self.project(text, mask)
        if shards is not None and images:
            captions, images = own_captions(captions, shards), shards.images
        space = BlockContextT2V("space", captions, images=images)
        run = with_reuse(self.stack_reuse, run_blocks or self.stack_runner())
        first = [x]
        del x  # the blocks free it, if nobody else names it
        x, pending = run(first.pop(), modulation, space, temporal, (rows, columns), shards)  # (B, F, N, D)
        if self.modulation_table is not None:
            shift, scale = of_block(modulation, None)
        else:
            head = (self.scale_shift_table + time[:, None]).to(time.dtype)
            if shards is not None:
                head = shards.own_rows(head, x.shape[0])
            shift, scale = head.unbind(1)  # (G, D) each
        x = self.proj_out(add_and_norm(x, pending, shift, scale)[1])  # (B, F, N, P*P*2C)
        x = x if shards is None else shards.whole(x)
        return rearrange(x, "b f (h w) (p q c) -> b c f (h p) (w q)", h=rows, w=columns, p=p, q=p)

    @property
    def policy(self) -> str:
        return "block" if self.gradient_checkpointing else self.recompute

    def stack_runner(self) -> RunBlocks:
        """Returns the function that runs the blocks."""
        return self.run_blocks

    def run_blocks(
        self,
        x: Tensor,
        modulation: Conditioning,
        space: BlockContextT2V,
        temporal: bool,
        grid: tuple[int, int],
        shards: Shards | None = None,
    ) -> tuple[Tensor, Pending | None]:
        """Runs the space blocks, each followed by its time block if `temporal`."""
        stack = self.stack_for(x, modulation, space, temporal, grid, shards)
        pending: Pending | None = None
        # one loop, which alone names x: a function around both blocks would keep the first one's input for the second
        for i, _ in enumerate(zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True)):
            x, pending = self.run_space(i, x, pending, stack)
            if temporal:
                x, pending = self.run_time(i, x, pending, stack)
        return x, pending

    @staticmethod
    def stack_for(
        x: Tensor,
        modulation: Conditioning,
        space: BlockContextT2V,
        temporal: bool,
        grid: tuple[int, int],
        shards: Shards | None = None,
    ) -> Stack:
        frames = x.shape[1] - space.images if shards is None else shards.frames
        over_time = modulation
        if isinstance(modulation, Tensor) and modulation.shape[0] > x.shape[0]:  # a row a frame
            over_time = modulation.unflatten(0, (x.shape[0], -1))[:, :frames].flatten(0, 1)
            if shards is not None:
                modulation, over_time = shards.own_rows(modulation, len(x)), shards.own_video(over_time, len(x))
        return Stack(modulation, over_time, space, temporal, frames, shards)

    def run_space(self, i: int, x: Tensor, pending: Pending | None, stack: Stack) -> tuple[Tensor, Pending | None]:
        block = self.transformer_blocks[i]
        return run_block(self.policy, block, x, pending, of_block(stack.modulation, block), stack.space)

    def run_time(self, i: int, x: Tensor, pending: Pending | None, stack: Stack) -> tuple[Tensor, Pending | None]:
        block, images = self.temporal_transformer_blocks[i], stack.space.images
        pos = self.time_positions(x.shape[3], stack.frames, x) if i == 0 and stack.frames > 1 else None
        pos = pos if stack.shards is None else stack.shards.own_positions(pos)
        context, own = BlockContextT2V("time", pos=pos, shards=stack.shards), of_block(stack.over_time, block)
        if images:
            return self.beside_images(self.policy, block, x, pending, own, context, images), None
        return run_block(self.policy, block, x, pending, own, context)

    def project(self, text: Tensor, mask: Tensor | None) -> Text:
        one, two = self.caption_projection.linear_1, self.caption_projection.linear_2

        def compute(text: Tensor) -> Tensor:
            return two(gelu(one(text), approximate="tanh"))

        kept = not is_gathered(self)
        return Text(self.prompt_cache(text, (one, two), compute) if kept else compute(text), mask, kept)

    def embed_time(self, t: Tensor) -> Tensor:
        layers = self.adaln_single.emb.timestep_embedder
        wave = timestep_wave(t, TIME_CHANNELS).to(weight_of(self.pos_embed.proj).dtype)
        return layers.linear_2(silu(layers.linear_1(wave)))

    def time_positions(self, width: int, frames: int, x: Tensor) -> Tensor:
        """Returns positions (F, 1, D) in x's dtype, which `extend_time` fits to another F than video_length."""
        stored = self.config.video_length
        stretched = frames != stored and self.extend_time == "interpolate"
        table = time_table(width, stored if stretched else frames, x.device)
        return (stretch_time(table, frames) if stretched else table).transpose(0, 1).to(x.dtype)

    @staticmethod
    def beside_images(
        policy: str,
        block: nn.Module,
        x: Tensor,
        pending: Pending | None,
        modulation: Any,
        context: BlockContextT2V,
        images: int,
    ) -> Tensor:
        """Applies a time block to the video frames of (B, F+n, N, D); the n images only get their pending residual."""
        frames = x.shape[1] - images
        video, still = pending, pending
        if pending is not None:
            gates = pending.gate, pending.gate
            if pending.gate.shape[0] > x.shape[0]:  # a row a frame
                rows = pending.gate.unflatten(0, (x.shape[0], -1))
                gates = rows[:, :frames].flatten(0, 1), rows[:, frames:].flatten(0, 1)
            video = pending._replace(y=pending.y[:, :frames], gate=gates[0])
            still = pending._replace(y=pending.y[:, frames:], gate=gates[1])
        after = resolve(*run_block(policy, block, x[:, :frames], video, modulation, context))
        return torch.cat([after, resolve(x[:, frames:], still)], dim=1)

    def forget_text(self) -> None:
        """Empties the caches of text, keys and values; needed only after writing weights or text through `.data`."""
        for module in self.modules():
            kept = module.__dict__.get("_prompt_cache")
            if kept is not None:
                kept.forget()

    def share_projections(self) -> list[str]:
        """Moves to_q, to_k, to_v of each self-attention into one storage; returns the attentions where that fails."""
        lists = ("transformer_blocks", "temporal_transformer_blocks")
        blocks = {f"{kind}.{name}": block for kind in lists for name, block in getattr(self, kind).named_children()}
        # a pooling block has values alone
        attentions = {f"{name}.attn1": block.attn1 for name, block in blocks.items() if hasattr(block.attn1, "to_q")}
        return [n for n, a in attentions.items() if not share_storage((a.to_q, a.to_k, a.to_v))]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        moved = False

        def apply(x: Tensor) -> Tensor:
            nonlocal moved
            out = fn(x)
            if out is not x and not moved:
                moved = True
                self.forget_text()  # before the other weights, whose old storages it keeps
            return out

        # a pipeline that offloads whole models calls `to` before each forward, mostly where everything already is
        result = super()._apply(apply, recurse)
        if moved:
            self.share_projections()
        return result

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self.forget_text()
        result = super().load_state_dict(*args, **kwargs)
        self.share_projections()
        return result

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.share_projections()


def own_captions(captions: Text, shards: Shards) -> Text:
    """Returns the captions (B, 1 + n, T, D) of the clip and of a rank's images; (B, T, D) where it has no images."""
    if not shards.images:
        return captions._replace(
            hidden=captions.hidden[:, 0], mask=None if captions.mask is None else captions.mask[:, 0], kept=False
        )
    before = 1 + shards.first_image - shards.frames
    held = [0, *range(before, before + shards.images)]
    return captions._replace(
        hidden=captions.hidden[:, held], mask=None if captions.mask is None else captions.mask[:, held], kept=False
    )


class _TimestepT2V(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        layers = nn.ModuleDict({"linear_1": nn.Linear(TIME_CHANNELS, width), "linear_2": nn.Linear(width, width)})
        self.emb = nn.ModuleDict({"timestep_embedder": layers})
        self.linear = nn.Linear(width, 6 * width)


class LatteT2V(FastT2V):
    """x (B, C, F, H, W), t (B,) or (B, F), text (B, T, caption_channels) -> (B, 2C, F, H, W).

    Args:
        recompute: what the backward computes again instead of keeping, as in Latte.
        extend_time: positions where F is neither 1 nor video_length: "error" refuses as upstream does, "sincos"
            continues the table, "interpolate" stretches it.
        **kwargs: fields of LatteT2VConfig: diffusers' constructor keywords.
    """

    config_type: type[LatteT2VConfig] = LatteT2VConfig
    folder_classes: tuple[str, ...] = ("LatteTransformer3DModel", "LatteT2V")  # in config.json; the first is written

    def __init__(self, *, recompute: str = "none", extend_time: str = "error", **kwargs: Any):
        super().__init__()
        check_keyword("recompute", recompute, POLICIES, "LatteT2V")
        check_keyword("extend_time", extend_time, EXTEND, "LatteT2V")
        self.recompute, self.extend_time = recompute, extend_time
        self.config = config = self.config_type(**kwargs)
        width, p = config.width, config.patch_size
        self.pos_embed = nn.ModuleDict({"proj": nn.Conv2d(config.in_channels, width, p, stride=p)})
        for name, space in (("transformer_blocks", True), ("temporal_transformer_blocks", False)):
            setattr(self, name, nn.ModuleList(self.make_blocks(space)))
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, p * p * config.channels_out)
        self.adaln_single = _TimestepT2V(width)
        layers = {"linear_1": nn.Linear(config.caption_channels, width), "linear_2": nn.Linear(width, width)}
        self.caption_projection = nn.ModuleDict(layers)
        self.share_projections()

    def make_blocks(self, space: bool) -> list[nn.Module]:
        """Returns new blocks over space or over time."""
        config = self.config
        args = (config.width, config.num_attention_heads, config.attention_bias, config.norm_eps, space)
        return [BlockT2V(*args) for _ in range(config.num_layers)]

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks in the order of the forward."""
        pairs = zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True)
        return [block for pair in pairs for block in pair]

    @property
    def dtype(self) -> torch.dtype:
        return self.proj_out.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.proj_out.weight.device

    def enable_gradient_checkpointing(self) -> None:
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(cls, folder: Any, **kwargs: Any) -> "LatteT2V":
        """Loads the model of a local folder; see latte_fast.models.latte_t2v.diffusers_folder.load_t2v."""
        from latte_fast.models.latte_t2v.diffusers_folder import load_t2v

        return load_t2v(cls, cls.config_type, cls.folder_classes, folder, **kwargs)

    def save_pretrained(self, folder: Any) -> None:
        """Writes config.json and the weights as safetensors, as diffusers' LatteTransformer3DModel reads them."""
        from latte_fast.models.latte_t2v.diffusers_folder import save_t2v

        save_t2v(self, self.folder_classes[0], folder, asdict(self.config))
