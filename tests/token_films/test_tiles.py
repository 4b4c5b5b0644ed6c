"""Frames larger than the transformer sees: windows that cover them, films against a slow loop, training on windows."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latte_fast import reference
from latte_fast.codecs.vqgan import VQGANCodec
from latte_fast.data.seeding import SampleKey
from latte_fast.models.tats.chunks import latents_of, pixels_of
from latte_fast.models.tats.files import fingerprint, save_vqgan
from latte_fast.models.tats.transformer_files import load_transformer, save_transformer
from latte_fast.runs.config import TokenTraining
from latte_fast.runs.tokens import TokenLayout, TrainedTokens, load_tokens
from latte_fast.sampling.request import Request
from latte_fast.token_films.draw import pick, uniforms
from latte_fast.token_films.sample import open_tokens
from latte_fast.token_films.source import TokenOptions, TokenSource
from latte_fast.token_films.tiles import tiles
from latte_fast.training import TrainConfig, Trainer
from tests.helpers.played import Played
from tests.helpers.tiny_tokens import pair, tiny_tokens_run, write_tokens
from tests.helpers.tiny_vqgan import pair as vqgan_pair

CODES, CLASSES, WHOLE, SIDE = 24, ["a", "b", "c"], 5, 3
OPTIONS = TokenTraining(n_layer=2, n_head=2, n_embd=16, side=SIDE)


def trained(fingerprint: str = "", frames: int = 3, words: int = 0, conditions: int = 3) -> TrainedTokens:
    """An untrained model in float64 that sees 3 x 3 of a frame's 5 x 5 codes."""
    layout = TokenLayout(
        frames, SIDE, CODES, conditions, 1, False, fingerprint, 2, 4, words=words, bpe="b" * bool(words), whole=WHOLE
    )
    config = layout.model(2, 2, 16)
    given = {name: getattr(config, name) for name in ("vocab_size", "block_size", "vtokens_pos")}
    return TrainedTokens(pair(torch.float64, 2, **given)[0], layout, CLASSES, TrainConfig(), 1)


@pytest.fixture(scope="module")
def codec() -> VQGANCodec:
    network = vqgan_pair(n_codes=CODES)[0]
    return VQGANCodec(network, (latents_of, pixels_of), "tiny", fingerprint(network))


@pytest.mark.parametrize(("whole", "side", "overlap"), [(5, 3, 0), (5, 3, 2), (8, 3, 1), (4, 4, 0), (7, 1, 0)])
def test_windows_cover_a_frame_once(whole: int, side: int, overlap: int) -> None:
    """Each place is drawn by one window, inside the frame, and neighbours share at least what is asked for."""
    found = tiles(whole, side, overlap)
    drawn = torch.cat([tile.places[~tile.drawn] for tile in found])
    assert drawn.sort().values.equal(torch.arange(whole * whole))
    for tile in found:
        rows, columns = tile.places // whole, tile.places % whole
        assert rows.view(side, side).diff(dim=0).eq(1).all() and columns.view(side, side).diff(dim=1).eq(1).all()
        assert not tile.drawn.all()
    lefts = sorted({int(tile.places[0]) % whole for tile in found})
    assert lefts[0] == 0 and lefts[-1] == whole - side
    assert all(b - a <= side - (overlap or side // 2) for a, b in pairwise(lefts))


def slow_film(model: TrainedTokens, options: TokenOptions, number: int, label: int, frames: int, seed: int) -> Tensor:
    """Draws a film with a whole forward for each code, from what is there of its window before it in the order."""
    film = torch.full((frames, WHOLE, WHOLE), -1)
    overlap = options.overlap or SIDE // 2
    at = [*range(0, WHOLE - SIDE, SIDE - overlap), WHOLE - SIDE]
    start = 0
    while start < frames:
        context = 0 if start == 0 else start - options.context
        stop = min(frames, start + (options.context if start == 0 else 0) + options.stride)
        if frames <= model.layout.frames:
            context, stop = 0, frames
        for y in at:
            for x in at:
                box = ((0, model.layout.frames), (y, y + SIDE), (x, x + SIDE))
                order = [
                    (f, i, j) for f in range(context, stop) for i in range(y, y + SIDE) for j in range(x, x + SIDE)
                ]
                for n, (f, i, j) in enumerate(order):
                    if film[f, i, j] >= 0:
                        continue
                    before = [label] + [int(film[place]) + 3 for place in order[:n]]
                    with torch.no_grad():
                        logits = model.model(torch.tensor([before]), box=box)[:, -1, 3:]
                    share = uniforms(seed, [number], f, WHOLE * WHOLE)[0, i * WHOLE + j]
                    film[f, i, j] = pick(logits, share[None], options.drawing)[0]
        start = stop
    return film


CELLS = [(0, 1, 1, 5), (2, 2, 1, 5), (0, 1, 2, 4), (0, 1, 1, 3)]


@pytest.mark.parametrize(("overlap", "context", "stride", "frames"), CELLS)
def test_films_equal_a_slow_loop(codec: VQGANCodec, overlap: int, context: int, stride: int, frames: int) -> None:
    model = trained(codec.fingerprint)
    options = TokenOptions(top_k=9, top_p=0.9, overlap=overlap, context=context, stride=stride)
    source = TokenSource(model, codec, options, ["b", "2"])
    request = Request(count=2, batch=2, frames=2 * frames, seed=5)
    ticks: list[int] = []
    found = source.tokens(request, [0, 1], ticks.append)
    assert found.shape == (2, frames, WHOLE, WHOLE) and sum(ticks) == source.steps(request)
    for number, label in ((0, 1), (1, 2)):
        assert torch.equal(found[number], slow_film(model, options, number, label, frames, 5))
    video, _ = source.draw(request, [1])
    assert video.shape == (1, 2 * frames, 4 * WHOLE, 4 * WHOLE, 3)


def test_a_graph_draws_the_same(codec: VQGANCodec, played: Played) -> None:
    """One capture serves all windows: what is held, where they lie and what is there differ in memory alone."""
    model = trained(codec.fingerprint)
    options, request = TokenOptions(top_k=9), Request(count=1, batch=1, frames=8, seed=5)
    found = TokenSource(model, codec, options, ["b"]).tokens(request, [0], lambda n: None)
    assert played.captures == 1 and played.replays > 100
    assert torch.equal(found[0], slow_film(model, options, 0, 1, 4, 5))


def test_places_are_the_box_of_the_authors() -> None:
    """Places of each sequence, and the decoder's second table, against the authors' slices in float64."""
    ours, oracle = pair(torch.float64, vocab_size=27, block_size=27, vtokens_pos=(3, WHOLE, WHOLE))
    layout = trained().layout
    corner = torch.tensor([[0, 2], [1, 0]])
    tokens = torch.randint(27, (2, 27), generator=torch.Generator().manual_seed(0))
    got = ours(tokens, box=layout.window(corner))
    for row, (y, x) in enumerate(corner.tolist()):
        box = (slice(0, 3), slice(y, y + SIDE), slice(x, x + SIDE))
        want = oracle(tokens[row : row + 1], box)
        torch.testing.assert_close(got[row : row + 1], want, rtol=1e-10, atol=1e-11)


def test_losses_equal_the_oracle(tmp_path: Path) -> None:
    """In float64 by the authors' formula: each clip's window, drawn inside the frame and anew in each epoch."""
    shards = write_tokens(tmp_path / "shards", side=WHOLE)
    config = tiny_tokens_run(tmp_path / "run", shards, tokens=OPTIONS, size=4 * WHOLE, batch=8)
    trainer = Trainer(config, say=lambda text: None)
    model: Any = trainer.objective.learners["model"].model.double()
    assert model.config.vtokens_pos == (4, WHOLE, WHOLE) and model.config.block_size == 4 * SIDE * SIDE
    oracle = reference.token_transformer.TokenTransformer(
        27, 4 * SIDE * SIDE, 2, 2, 16, vtokens_pos=(4, WHOLE, WHOLE)
    ).double()
    oracle.load_state_dict(model.state_dict())
    with torch.no_grad():
        model.vtokens_pos_emb.normal_(), oracle.vtokens_pos_emb.copy_(model.vtokens_pos_emb)
    batch = next(trainer.batches())
    assert len({*map(tuple, batch["corner"].tolist())}) > 2
    items: Any = trainer.objective.items()
    assert len({tuple(items[epoch, 0]["corner"].tolist()) for epoch in range(9)}) > 2
    want = []
    for tokens, label, (y, x) in zip(batch["tokens"], batch["label"], batch["corner"].tolist(), strict=True):
        codes = tokens[:, y : y + SIDE, x : x + SIDE].flatten() + 3
        box = (slice(0, 4), slice(y, y + SIDE), slice(x, x + SIDE))
        logits = oracle(torch.cat([label[None], codes[:-1]])[None], box)[0]
        want.append(nn.functional.cross_entropy(logits, codes))
    got = trainer.losses("model", batch)["loss"]
    torch.testing.assert_close(got, torch.stack(want).mean(), rtol=1e-11, atol=1e-12)
    got.backward(), torch.stack(want).mean().backward()
    for (name, p), q in zip(model.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_mistakes_lie_in_windows(tmp_path: Path) -> None:
    """Random codes stand where the window's own are seen, and those to predict stay the window's."""
    shards = write_tokens(tmp_path / "shards", side=WHOLE)
    options = replace(OPTIONS, noise=0.5)
    config = tiny_tokens_run(tmp_path / "run", shards, tokens=options, size=4 * WHOLE)
    objective: Any = Trainer(config, say=lambda text: None).objective
    item = objective.items()[SampleKey(0, 3, 3)]
    assert item["mistakes"].shape == (4, SIDE, SIDE) and (item["mistakes"] >= 0).any()
    batch = {name: value[None] for name, value in item.items()}
    seen: list[Tensor] = []
    objective.learner.call = lambda inputs, targets, *rest: (seen.extend((inputs, targets, *rest)), targets.float())[1]
    objective.losses("model", batch, 0)
    codes = batch["tokens"].flatten(1).gather(1, objective.layout.window(batch["corner"])) + 3
    wrong = batch["mistakes"].flatten(1)
    assert torch.equal(seen[1], codes) and torch.equal(seen[3], objective.layout.window(batch["corner"]))
    assert torch.equal(seen[0][:, 1:], torch.where(wrong < 0, codes, wrong + 3)[:, :-1])


def test_a_run_draws_whole_frames(tmp_path: Path) -> None:
    """Trained, stopped, resumed to the same weights, drawn, and kept under the authors' keys."""
    network = vqgan_pair(n_codes=CODES)[0]
    save_vqgan(network, tmp_path / "vqgan.safetensors")
    shards = write_tokens(tmp_path / "shards", side=WHOLE, fingerprint=fingerprint(network))
    given = {"tokens": OPTIONS, "size": 4 * WHOLE, "vae": str(tmp_path / "vqgan.safetensors")}
    whole = tiny_tokens_run(tmp_path / "whole", shards, steps=8, **given)
    Trainer(whole, say=lambda text: None).run()
    half = replace(whole, out=str(tmp_path / "half"))
    Trainer(replace(half, steps=4), say=lambda text: None).run()
    Trainer(half, say=lambda text: None, resume=True).run()
    one, two = (load_tokens(tmp_path / name) for name in ("whole", "half"))
    for (name, p), q in zip(one.model.named_parameters(), two.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    source = open_tokens(tmp_path / "whole")
    videos, _ = source.draw(Request(count=1, batch=1, frames=12), [0])
    assert videos.shape == (1, 12, 4 * WHOLE, 4 * WHOLE, 3)
    save_transformer(one.model, tmp_path / "kept.ckpt")
    back = load_transformer(tmp_path / "kept.ckpt", n_head=2)
    assert back.config == one.model.config and torch.equal(back.vtokens_pos_emb, one.model.vtokens_pos_emb)


def test_refused(codec: VQGANCodec, tmp_path: Path) -> None:
    model = trained(codec.fingerprint)
    with pytest.raises(ValueError, match=r"tokens\.overlap must be below the window's 3 codes, got 3"):
        TokenSource(model, codec, TokenOptions(overlap=3))
    whole = TokenLayout(3, 2, CODES, 3, 1, False, codec.fingerprint, 2, 4)
    sizes = whole.model(2, 2, 16)
    plain = pair(torch.float64, vocab_size=sizes.vocab_size, block_size=sizes.block_size)[0]
    other = TrainedTokens(plain, whole, CLASSES, TrainConfig(), 1)
    with pytest.raises(ValueError, match=r"tokens\.overlap must be 0 for a model that sees whole frames, got 1"):
        TokenSource(other, codec, TokenOptions(overlap=1))
    for changes in ({"gap": True}, {"every": 4}):
        with pytest.raises(ValueError, match=r"tokens\.side must be 0 for key frames and for a model that fills gaps"):
            replace(OPTIONS, **changes)
    with pytest.raises(ValueError, match=r"tokens\.side must be at least 0, got -1"):
        replace(OPTIONS, side=-1)
    config = tiny_tokens_run(tmp_path / "run", tokens=OPTIONS)
    with pytest.raises(ValueError, match=r"tokens\.side must be at most the 2 codes of a frame of 8 pixels, got 3"):
        Trainer(config, say=lambda text: None)
    with pytest.raises(ValueError, match="box must be None for a model without vtokens_pos, got places"):
        plain(torch.zeros(1, 4, dtype=torch.int64), box=torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"box must hold \(B, n\) places of the 3 codes of the input, got \(1, 2\)"):
        model.model(torch.zeros(1, 4, dtype=torch.int64), box=torch.zeros(1, 2, dtype=torch.int64))
