"""Tokens drawn from logits: which can be drawn, how often each is, and by what; and the schedules of long films."""

import pytest
import torch
from torch import Tensor

from latte_fast.diffusion.noise import Use, generator
from latte_fast.token_films.draw import Drawing, pick, uniforms
from latte_fast.token_films.schedule import Span, gaps, windows


def authors(logits: Tensor, how: Drawing) -> Tensor:
    """The authors' filter, in their order: temperature, top-k, top-p by a full sort; probabilities (B, n)."""
    x = logits.double() / how.temperature
    if how.top_k:
        least = x.topk(min(how.top_k, x.shape[1])).values[:, -1:]
        x = x.masked_fill(x < least, -torch.inf)
    values, order = x.sort(1, descending=True)
    sums = values.softmax(1).cumsum(1)
    drop = sums > how.top_p
    drop[:, 1:] = drop[:, :-1].clone()
    drop[:, 0] = False
    return x.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf).softmax(1)


HOWS = [Drawing(1.0, 0, 1.0), Drawing(0.7, 5, 1.0), Drawing(1.3, 0, 0.8), Drawing(1.0, 9, 0.6), Drawing(1.0, 99, 0.05)]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_every_token_has_the_authors_probability(how: Drawing) -> None:
    """Over 4,000 evenly spaced numbers each token is drawn as often as its probability says, to one in 4,000."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(3, 20)
    count = 4000
    even = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    for row, want in zip(logits, authors(logits, how), strict=True):
        found = pick(row.expand(count, -1), even, how).bincount(minlength=20).double() / count
        assert (found - want).abs().max() <= 1.01 / count
        assert not found[want == 0].any()


def test_greedy_and_ends() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 5.0, 5.0]])
    ends = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    for how in (Drawing(0.0), Drawing(1.0, 1)):
        assert pick(logits, ends, how).tolist() == [1, 0]
    for how in HOWS:
        assert (((got := pick(logits, ends, how)) >= 0) & (got < 3)).all()
    assert pick(logits[:1].bfloat16(), ends[:1], Drawing(1.0, 0, 1.0)).item() == 0


def test_numbers_follow_from_seed_sample_and_frame() -> None:
    found = uniforms(7, [4, 9], 3, 5)
    assert found.dtype == torch.float64 and found.shape == (2, 5)
    assert torch.equal(found[1], torch.from_numpy(generator(7, 9, Use.TOKEN, 3).random(5)))
    assert torch.equal(found[1:], uniforms(7, [9], 3, 5)) and Use.TOKEN == 9
    assert len({float(uniforms(s, [n], f, 1)) for s in (0, 1) for n in (0, 1) for f in (0, 1)}) == 8


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [("temperature", -1.0, "at least 0"), ("top_k", -1, "at least 0"), ("top_p", 0.0, r"in \(0, 1\]")],
)
def test_refused(name: str, value: float, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"tokens.{name} must be {rule}"):
        Drawing(**{name: value})


def test_windows_are_the_authors() -> None:
    """Their default context of one frame, and others: each frame is drawn once, after the frames just before it."""
    assert windows(4, 4, 1, 3) == [Span(0, 0, 4)]
    assert windows(5, 4, 1) == [Span(0, 0, 2), Span(1, 2, 3), Span(2, 3, 4), Span(3, 4, 5)]
    assert windows(9, 4, 2, 2) == [Span(0, 0, 4), Span(2, 4, 6), Span(4, 6, 8), Span(6, 8, 9)]
    for frames in range(1, 20):
        for context, stride in ((1, 1), (1, 3), (2, 1), (3, 1), (2, 2)):
            spans = windows(frames, 4, context, stride)
            assert [f for span in spans for f in range(span.start, span.stop)] == list(range(frames))
            assert all(0 < span.stop - span.context <= 4 for span in spans)
            assert all(span.start - span.context == context for span in spans[1:])
    with pytest.raises(ValueError, match="at most the 4 latent frames of the model's block together, got a window of"):
        windows(9, 4, 3, 2)
    with pytest.raises(ValueError, match=r"tokens\.context must be at least 1, got 0"):
        windows(9, 4, 0)


def test_gaps_between_key_frames() -> None:
    """17 key frames, 16 gaps of 3: 65 latent frames, 260 frames."""
    spans = gaps(65, 4)
    assert len(spans) == 16 and spans[0] == Span(0, 1, 4) and spans[-1] == Span(60, 61, 64)
    with pytest.raises(
        ValueError, match="frames must be reachable by key frames 4 latent frames apart, such as 1012 or"
    ):
        gaps(256, 4, 4)
    with pytest.raises(ValueError, match="such as 20 or 36, got 4"):
        gaps(1, 4, 4)
