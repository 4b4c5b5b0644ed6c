"""The objective of a token transformer: the next token of a clip, or those of the gap between its ends."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from latte_fast.codecs.clip_bpe import ClipBPE
from latte_fast.data import open_dataset
from latte_fast.data.encode_text import read_captions
from latte_fast.data.seeding import SampleKey
from latte_fast.data.token_clips import TokenClips
from latte_fast.data.tokens import SOUND_TOKENS, TokenFolder
from latte_fast.data.windows import WindowedClips
from latte_fast.diffusion.noise import mistakes
from latte_fast.distributed.ranks import Ranks
from latte_fast.media import write
from latte_fast.models.checkpoint import load_state
from latte_fast.models.config import require
from latte_fast.models.tats.transformer import TokenTransformer
from latte_fast.models.tats.transformer_config import TransformerConfig
from latte_fast.models.tats.transformer_files import build, read_transformer
from latte_fast.runs.codec import open_vqgan
from latte_fast.runs.config import TrainConfig
from latte_fast.runs.token_layout import layout_of
from latte_fast.runs.tokens import TokenLayout, TrainedTokens
from latte_fast.sampling.request import Request
from latte_fast.token_films.source import TokenOptions, TokenSource
from latte_fast.training.learner import Learner
from latte_fast.training.loader import Batch
from latte_fast.training.objectives.objective import OneLearner


class Mistaken(Dataset):
    """Clips with random codes in the frames that the model goes on from, drawn by (seed, sample number)."""

    def __init__(self, dataset: Any, config: TrainConfig, layout: TokenLayout):
        self.dataset, self.seed = dataset, config.seed
        shape = (layout.frames, layout.side, layout.side)
        self.how = (shape, layout.n_codes, config.tokens.noise, layout.gap)

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        wrong, frames = mistakes(self.seed, key.number, *self.how)
        return self.dataset[key] | {"mistakes": wrong, "given": torch.tensor(frames)}


class TokensObjective(OneLearner):
    """Trains a transformer on tokens; `Objective` explains the methods.

    Args:
        config: configuration of the run.
        ranks: processes of the run.
        parallel: none, ddp or fsdp.
        say: function that prints a note.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, parallel: str, say: Any):
        self.config, self.ranks, self.options = config, ranks, config.tokens
        self.dataset: Any = open_dataset(config.data, config.frames, config.size)
        stored = isinstance(self.dataset, TokenClips)
        self.codec = None if stored and not config.sample.every else open_vqgan(config.vae, ranks.device)
        self.bpe = ClipBPE(self.options.bpe) if self.options.captions else None
        self.captions: list[str] = []
        if self.bpe is not None:
            known = read_captions(self.options.captions)
            self.captions = self.dataset.give_captions(known, self.bpe, self.options.words)
        sounds = TokenFolder(self.options.sound, SOUND_TOKENS) if self.options.sound else None
        if sounds is not None:
            self.dataset.give_sounds(sounds)
        wanted = self.options.classes and self.bpe is None and sounds is None
        self.classes = list(self.dataset.classes) if wanted and self.dataset.classes else []
        self.layout = layout_of(config, self.dataset, self.codec, len(self.classes), self.bpe, sounds)
        self.length = len(self.dataset)
        sizes = (self.options.n_layer, self.options.n_head, self.options.n_embd)
        model = new_transformer(config, self.layout.model(*sizes), say).to(ranks.device)
        self.learner = Learner(model, config.optim, parallel, ranks, config.precision, decayed=decayed(model))
        self.learners: Mapping[str, Learner] = {"model": self.learner}
        self.columns: tuple[str, ...] = ("loss",)

    def about(self) -> str:
        count = sum(p.numel() for p in self.learner.weights.own.values())
        layout = self.layout
        what = "tokens of a gap" if layout.gap else "tokens"
        size = f"{layout.frames}x{layout.side}x{layout.side}"
        size += f" of {layout.whole}x{layout.whole}" if layout.whole else ""
        other = "captions" if self.bpe else "sounds" if layout.sound else "no classes"
        choices = f"{len(self.classes):,} classes" if self.classes else other
        return f"TokenTransformer of {count:,} parameters for {size} {what}, {self.length:,} clips with {choices}"

    def items(self) -> Dataset:
        layout, seed = self.layout, self.config.data.seed
        clips = WindowedClips(self.dataset, seed, layout.whole, layout.side) if layout.whole else self.dataset
        return Mistaken(clips, self.config, layout) if self.options.noise else clips

    def losses(self, learner: str, batch: Batch, step: int) -> dict[str, Tensor]:
        given = batch["words"] if self.layout.words else batch["label"] if self.classes else None
        tokens, places = self.tokens(batch), None
        if self.layout.whole:
            places = self.layout.window(batch["corner"])
            tokens = tokens.flatten(1).gather(1, places).unflatten(1, (-1, self.layout.side, self.layout.side))
        inputs, targets, start = inputs_of(tokens, given, self.layout, batch.get("mistakes"))
        with self.learner.autocast(inputs.device):
            losses = self.learner.call(inputs, targets, start, places, self.layout.given)  # (B, n)
        if "given" not in batch or self.layout.gap:
            return {"loss": losses.mean(1)}
        # of frames with mistakes nothing is learned, or a model would expect some in what it has just drawn
        learned = torch.arange(losses.shape[1], device=losses.device) >= self.layout.per_frame * batch["given"][:, None]
        return {"loss": (losses * learned).sum(1) / learned.sum(1)}

    def tokens(self, batch: Batch) -> Tensor:
        """Returns the tokens (B, t, h, w) of a batch of tokens, or of films through the VQGAN."""
        if "tokens" in batch:
            return batch["tokens"]
        assert self.codec is not None
        # on the device, as a step that waits for the host lets a GPU idle
        return self.codec.tokens(batch["video"], batch["video"].device)

    def meta(self) -> dict[str, Any]:
        sizes = (self.options.n_layer, self.options.n_head, self.options.n_embd)
        known = {"family": TransformerConfig.family, "model": asdict(self.layout.model(*sizes))}
        return known | {"layout": asdict(self.layout), "classes": self.classes}

    @torch.no_grad()
    def preview(self, step: int, folder: Path) -> None:
        """Writes folder/step-<n>.png: clips drawn by the averaged weights, a class after the other."""
        if self.ranks.first:
            assert self.codec is not None
            count = self.config.sample.count
            with self.learner.averaged():
                model: Any = self.learner.model
                trained = TrainedTokens(model, self.layout, self.classes, self.config, step)
                wanted = self.classes or self.captions
                sounds = self.dataset.sounds[:count] if self.layout.sound else ()
                source = TokenSource(trained, self.codec, TokenOptions(), wanted, bpe=self.bpe, sounds=sounds)
                request = Request(count=count, batch=count, seed=self.config.seed)
                clips, names = source.draw(request, range(count))
            folder.mkdir(exist_ok=True)
            write.write_sheet(folder / f"step-{step:07d}.png", list(clips), names)
        self.ranks.barrier()


def inputs_of(
    tokens: Tensor, given: Tensor | None, layout: TokenLayout, wrong: Tensor | None = None
) -> tuple[Tensor, Tensor, int]:
    """Returns a batch's inputs, its targets, and the first row that predicts one.

    A row predicts the token after it. A model that fills gaps learns the tokens between the ends alone: the ends see
    each other, so that nothing is to be learned of them. `wrong` are the codes that stand in the inputs in place of the
    clips' own, -1 for those that stay.
    """
    tokens = tokens[:, :: layout.every]
    targets = layout.sequence(tokens, given)[:, layout.given :]
    seen = tokens if wrong is None else torch.where(wrong < 0, tokens, wrong)
    inputs = layout.sequence(seen, given)[:, :-1]
    if not layout.gap:
        return inputs, targets, layout.given - 1
    size = layout.per_frame
    return inputs, targets[:, size:-size], size


def decayed(model: nn.Module) -> set[str]:
    """Returns the names of the weights that decay: those of linear layers, as the authors train."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def new_transformer(config: TrainConfig, sizes: TransformerConfig, say: Any) -> TokenTransformer:
    """Builds a transformer by the run's seed, with the weights of `pretrained` if the run starts from them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build(sizes)
    if config.pretrained is not None:
        found = read_transformer(config.pretrained, n_head=sizes.n_head, n_unmasked=sizes.n_unmasked)
        got, want = found.config.vocab_size, sizes.vocab_size
        require(got == want, "pretrained", f"of the data's vocabulary of {want} tokens", got)
        load_state(model, found.state, config.pretrained)
        say(f"{config.pretrained}: {len(found.state)} tensors taken")
    return model
