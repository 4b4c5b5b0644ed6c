"""What other weights change in a token transformer: its likeliest tokens, and the logits that choose them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from latte_fast.models.tats.decoder import Context, Decoder, causal_context, gap_context
from latte_fast.runs.tokens import TrainedTokens


@dataclass(frozen=True)
class Changed:
    """Logits and likeliest tokens of sequences, before and after a change of the weights."""

    snr: float  # signal-to-noise ratio of the logits in dB, both without the mean of their row
    same: float  # share of the tokens that stay the likeliest after the same tokens before them
    first: list[int]  # of each sequence: the number of tokens before the first that another takes the place of
    count: int  # tokens of a sequence

    def __str__(self) -> str:
        kept = ", ".join(str(n) for n in self.first)
        return (
            f"logits: signal-to-noise ratio {self.snr:.1f} dB; {self.same:.2%} of the likeliest tokens stay; drawn "
            f"greedily, sequences stay the same for {kept} of {self.count} tokens"
        )


class Greedy:
    """Draws the likeliest tokens of some sequences, and compares what changed weights make of the same sequences.

    Args:
        trained: transformer in eval mode.
        sequences: number of sequences; a model that fills gaps is given frames of random codes around them.
        seed: seed of the conditions and of these frames.
        count: number of tokens of a sequence, by default of a clip or gap.
    """

    def __init__(self, trained: TrainedTokens, sequences: int, seed: int = 0, count: int | None = None):
        self.trained = trained
        layout, source = trained.layout, torch.Generator().manual_seed(seed)
        given = torch.randint(max(layout.conditions, 1), (sequences, layout.given), generator=source)
        size, device = layout.per_frame, trained.model.pos_emb.device
        whole = (layout.frames - 2 if layout.gap else layout.frames) * size
        self.count = min(whole, count or whole)
        ends = torch.randint(layout.n_codes, (2, sequences, size), generator=source) + layout.conditions
        given, ends = given.to(device), ends.to(device)
        if layout.gap:
            self.context = gap_context(trained.model, torch.cat([given, ends[0]], 1), ends[1])
        else:
            self.context = causal_context(given)
        self.tokens, self.logits = self._run(self.context, None)

    @torch.no_grad()
    def _run(self, context: Context, forced: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the likeliest codes (B, n) and the logits (B, n, codes), after these or after `forced` codes."""
        layout = self.trained.layout
        first, last = layout.conditions, layout.conditions + layout.n_codes
        decoder = Decoder(self.trained.model, len(context.tokens), self.trained.model.config.block_size)
        found, kept = [], [decoder.start(context)[:, first:last].float()]
        for i in range(self.count):
            found.append(kept[-1].argmax(1))
            if i + 1 < self.count:
                token = found[-1] if forced is None else forced[:, i]
                kept.append(decoder.step(token + first)[:, first:last].float())
        return torch.stack(found, 1), torch.stack(kept, 1)

    def changed(self) -> Changed:
        """Compares the model as it is now with what it was."""
        tokens, logits = self._run(self.context, self.tokens)
        # a constant added to all of a row's logits changes no probability
        want, got = (x - x.mean(2, keepdim=True) for x in (self.logits, logits))
        noise = (got - want).square().sum(dtype=torch.float64)
        snr = float(10 * torch.log10(want.square().sum(dtype=torch.float64) / noise.clamp_min(1e-300)))
        same = tokens == self.tokens
        # drawn freely, a sequence is the forced one up to its first other token
        first = same.long().cumprod(1).sum(1).tolist()
        return Changed(snr, float(same.float().mean()), first, self.count)
