"""Long films of tokens against slow loops without a cache: windows, key frames and gaps; and what a stop leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast import TokenTransformer
from latte_fast.codecs.vqgan import VQGANCodec
from latte_fast.media import write
from latte_fast.models.tats.chunks import latents_of, pixels_of
from latte_fast.models.tats.decoder import Decoder
from latte_fast.models.tats.files import fingerprint
from latte_fast.runs.tokens import TokenLayout, TrainedTokens
from latte_fast.sampling.files import NAMES, sample_files
from latte_fast.sampling.request import Request
from latte_fast.token_films import films as token_films
from latte_fast.token_films.draw import Drawing, pick, uniforms
from latte_fast.token_films.source import TokenOptions, TokenSource
from latte_fast.training import Ranks, TrainConfig
from tests.helpers.films import decode
from tests.helpers.tiny_tokens import pair
from tests.helpers.tiny_vqgan import pair as vqgan_pair

CODES, CLASSES = 24, ["a", "b", "c"]


@pytest.fixture(scope="module")
def codec() -> VQGANCodec:
    network = vqgan_pair(n_codes=CODES)[0]
    return VQGANCodec(network, (latents_of, pixels_of), "tiny", fingerprint(network))


def trained(codec: VQGANCodec, frames: int = 3, every: int = 1, gap: bool = False, seed: int = 0) -> TrainedTokens:
    """An untrained model in float64 whose latent frames are 2 x 1 codes high and wide enough for a film of 4 pixels."""
    layout = TokenLayout(frames, 2, CODES, len(CLASSES), every, gap, codec.fingerprint, 2, 4)
    config = layout.model(2, 2, 16)
    sizes = {"vocab_size": config.vocab_size, "block_size": config.block_size, "n_unmasked": config.n_unmasked}
    return TrainedTokens(pair(torch.float64, seed, **sizes)[0], layout, CLASSES, TrainConfig(), 1)


def slow(model: TokenTransformer, given: list[int], count: int, rows: Tensor, how: Drawing, row: int = -1) -> list[int]:
    """Draws `count` codes after the tokens `given`, with a whole forward for each."""
    drawn: list[int] = []
    for i in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([given + [code + 3 for code in drawn]]))[:, row, 3:]
        drawn.append(int(pick(logits, rows[i : i + 1], how)))
    return drawn


HOWS = [pytest.param(0.0, id="greedy"), pytest.param(1.0, id="drawn")]


@pytest.mark.parametrize("temperature", HOWS)
@pytest.mark.parametrize(("context", "stride"), [(1, 1), (2, 1), (1, 2)])
def test_windows_equal_a_slow_loop(codec: VQGANCodec, context: int, stride: int, temperature: float) -> None:
    model = trained(codec)
    options = TokenOptions(temperature=temperature, top_k=9, top_p=0.9, context=context, stride=stride)
    request = Request(count=2, batch=2, frames=12, seed=5)
    found = TokenSource(model, codec, options, ["b", "2"]).tokens(request, [0, 1], lambda n: None)
    assert found.shape == (2, 6, 2, 2)
    for number, label in ((0, 1), (1, 2)):
        film: list[int] = []
        for frame in range(6):
            # within a window the frames so far are its context: those since its start
            first = 0 if frame < context + stride else frame - context - (frame - context) % stride
            rows = uniforms(5, [number], frame, 4)[0]
            given = [label, *(code + 3 for code in film[first * 4 :])]
            film += slow(model.model, given, 4, rows, options.drawing)
        assert found[number].flatten().tolist() == film


def test_a_clip_is_one_window(codec: VQGANCodec) -> None:
    """Without frames a film has the length of a training clip, and no context bounds it."""
    source = TokenSource(trained(codec), codec, TokenOptions(temperature=0.0), ["c"])
    found = source.tokens(Request(), [3], lambda n: None)
    want = slow(source.trained.model, [2], 12, torch.zeros(12, dtype=torch.float64), source.drawing)
    assert found.flatten().tolist() == want


@pytest.mark.parametrize("reading", ["trained", "released"])
def test_hierarchy_equals_a_slow_loop(codec: VQGANCodec, reading: Any) -> None:
    """260 frames of 17 key frames and 16 gaps, at four frames a latent frame, against loops without a cache."""
    keys, fill = trained(codec, 4, every=4), trained(codec, 5, gap=True, seed=1)
    options = TokenOptions(top_k=9, reading=reading, gaps=5)
    source = TokenSource(keys, codec, options, ["a"], fill)
    request = Request(count=1, batch=1, frames=2 * 65)
    ticks: list[int] = []
    film = source.tokens(request, [7], ticks.append)[0]
    assert film.shape == (65, 2, 2) and sum(ticks) == source.steps(request) == 17 * 4 + 4 * 12
    # at the authors' four frames a latent frame
    assert len(film) * 4 == 260
    codes: list[int] = []
    for key in range(17):
        rows = uniforms(0, [7], 4 * key, 4)[0]
        given = [0, *(code + 3 for code in codes[4 * max(0, key - 1) :])]
        codes += slow(keys.model, given, 4, rows, options.drawing)
    assert film[::4].flatten().tolist() == codes
    for gap in (0, 9, 15):
        before, after = (film[4 * (gap + i)].flatten() + 3 for i in (0, 1))
        rows = torch.cat([uniforms(0, [7], 4 * gap + i, 4)[0] for i in (1, 2, 3)])
        if reading == "trained":
            want = slow_gap(fill.model, before, after, rows, options.drawing)
        else:
            oracle = pair(torch.float64, 1, vocab_size=27, block_size=20, n_unmasked=4)[1]

            def draw(logits: Tensor, step: int, rows: Tensor = rows) -> Tensor:
                return pick(logits[:, 3:], rows[step : step + 1], options.drawing) + 3

            start = torch.cat([torch.tensor([0]), before])[None]
            with torch.no_grad():
                want = (oracle.fill_gap(start, after[None], 12, draw) - 3)[0].tolist()
        assert film[4 * gap + 1 : 4 * gap + 4].flatten().tolist() == want


def slow_gap(model: TokenTransformer, before: Tensor, after: Tensor, rows: Tensor, how: Drawing) -> list[int]:
    """Draws the tokens of a gap by whole blocks, whatever stands in the places not drawn yet."""
    block = torch.cat([torch.tensor([0]), before, torch.zeros(12, dtype=torch.int64), after[:-1]])[None]
    for i in range(12):
        with torch.no_grad():
            logits = model(block)[:, 4 + i, 3:]
        block[0, 5 + i] = pick(logits, rows[i : i + 1], how) + 3
    return (block[0, 5:17] - 3).tolist()


def test_a_sample_follows_from_its_number(codec: VQGANCodec) -> None:
    """In another batch and beside others; another seed gives other films."""
    source = TokenSource(trained(codec), codec, TokenOptions())
    request = Request(frames=12, seed=3)
    together = source.tokens(request, [4, 9, 2], lambda n: None)
    for i, number in enumerate((4, 9, 2)):
        assert torch.equal(source.tokens(request, [number], lambda n: None)[0], together[i])
    other = source.tokens(Request(frames=12, seed=4), [4, 9, 2], lambda n: None)
    assert (other != together).float().mean() > 0.5
    assert source.names(Request(count=30)) != source.names(Request(count=30, seed=1))


def dying(after: int) -> Callable[[Decoder, Tensor], Tensor]:
    """Returns a step that raises as a stop does, after so many calls."""
    step, left = Decoder.step, [after]

    def stops(self: Decoder, tokens: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return step(self, tokens)

    return stops


@pytest.mark.parametrize("hierarchy", [False, True])
def test_a_stopped_film_goes_on(
    codec: VQGANCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hierarchy: bool
) -> None:
    """The same files as without a stop, and what was drawn before it is not drawn again."""
    monkeypatch.setattr(token_films, "KEPT_EVERY", 0.0)
    models = (trained(codec, 4, every=4), trained(codec, 5, gap=True)) if hierarchy else (trained(codec), None)
    source = TokenSource(models[0], codec, TokenOptions(gaps=1), [], models[1])
    request = Request(count=2, batch=1, frames=34 if hierarchy else 24)
    request = Request(count=2, batch=1, frames=request.frames, steps=source.steps(request))
    sample_files(source, request, tmp_path / "whole", Ranks())
    out = tmp_path / "stopped"
    for i, stop in enumerate((20, 30, 10)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Decoder, "step", dying(stop))
            sample_files(source, request, out, Ranks(), resume=i > 0)
    steps: list[int] = []
    whole_step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, x: (steps.append(1), whole_step(self, x))[1])
    sample_files(source, request, out, Ranks(), resume=True)
    assert len(steps) < 0.75 * 2 * request.steps
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert names == ["000000.mp4", "000001.mp4", NAMES] == sorted(p.name for p in out.iterdir())
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert decode(out / "000001.mp4").shape == (request.frames, 8, 8, 3)


def test_what_another_request_left_is_not_taken(
    codec: VQGANCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_films, "KEPT_EVERY", 0.0)
    source = TokenSource(trained(codec), codec, TokenOptions())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Decoder, "step", dying(30))
        sample_files(source, Request(count=1, frames=24, steps=1), tmp_path / "out", Ranks())
    kept = tmp_path / "out" / ".tokens-000000.safetensors"
    assert kept.is_file()
    sample_files(source, Request(count=1, frames=24, steps=1, seed=1), tmp_path / "out", Ranks())
    sample_files(source, Request(count=1, frames=24, steps=1, seed=1), tmp_path / "alone", Ranks())
    assert (tmp_path / "out" / "000000.mp4").read_bytes() == (tmp_path / "alone" / "000000.mp4").read_bytes()
    assert not kept.exists()


def test_films_are_decoded_a_part_at_a_time(codec: VQGANCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A film is written of parts of `chunk` latent frames, and does not depend on them; other formats hold the same."""
    sizes: list[int] = []
    stream = write.stream_mp4

    def counted(path: Path, parts: Any, fps: float) -> None:
        def passing() -> Any:
            for part in parts:
                sizes.append(len(part))
                yield part

        stream(path, passing(), fps)

    monkeypatch.setattr(write, "stream_mp4", counted)
    request = Request(count=1, batch=1, frames=24, steps=1)
    for chunk in (5, 12):
        sample_files(
            TokenSource(trained(codec), codec, TokenOptions(chunk=chunk)), request, tmp_path / f"{chunk}", Ranks()
        )
    assert sizes == [10, 10, 4, 24]
    films = [(tmp_path / f"{chunk}" / "000000.mp4").read_bytes() for chunk in (5, 12)]
    assert films[0] == films[1]
    videos, names = TokenSource(trained(codec), codec, TokenOptions()).draw(request, [0])
    assert videos.shape == (1, 24, 8, 8, 3) and names[0] in CLASSES
    tokens = TokenSource(trained(codec), codec, TokenOptions()).tokens(request, [0], lambda n: None)
    whole = codec.network.decode(tokens)[0].movedim(0, -1).clamp(-1, 1)
    assert (videos[0].float() - (whole + 1) * 127.5).abs().max() <= 1


def test_refused(codec: VQGANCodec) -> None:
    plain, keys, fill = trained(codec), trained(codec, 4, every=4), trained(codec, 5, gap=True)
    other = vqgan_pair(n_codes=CODES, seed=9)[0]
    foreign = VQGANCodec(other, None, "other", fingerprint(other))
    options = TokenOptions()
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((plain, foreign, options), "vae must be the one whose tokens the model knows, with fingerprint"),
        ((fill, codec, options), "path must be a model that draws films, and one that fills gaps"),
        (
            (keys, codec, options),
            "tokens.between must be the run of a model that fills gaps, as the model draws every 4",
        ),
        (
            (plain, codec, options, [], fill),
            "tokens.between must be left out for a model that draws every latent frame",
        ),
        ((keys, codec, options, [], plain), "tokens.between must be a model that fills gaps"),
        ((keys, codec, options, [], trained(codec, 4, gap=True)), "of 3 latent frames a gap, got 2"),
        ((plain, codec, options, ["d"]), "classes must be below 3 or one of a, b, c, got 'd'"),
        ((plain, codec, TokenOptions(top_p=2.0)), r"tokens\.top_p must be in \(0, 1\], got 2"),
    ]
    for args, message in cases:
        with pytest.raises(ValueError, match=message):
            TokenSource(*args)
    requests = [
        (TokenSource(plain, codec, options), 7, "frames must be a multiple of the VQGAN's 2, got 7"),
        (
            TokenSource(keys, codec, options, [], fill),
            48,
            "frames must be reachable by key frames 4 latent frames apart",
        ),
        (TokenSource(plain, codec, TokenOptions(context=3)), 24, "together, got a window of 3 [+] 1"),
    ]
    for source, frames, message in requests:
        with pytest.raises(ValueError, match=message):
            source.steps(Request(frames=frames))
    for name in ("context", "stride", "gaps", "chunk"):
        with pytest.raises(ValueError, match=rf"tokens\.{name} must be at least 1, got 0"):
            TokenOptions(**{name: 0})


def test_windows_hear_their_sound(codec: VQGANCodec) -> None:
    """A window is given the sound of the block's frames from its first on, and after its end its last tokens."""
    layout = TokenLayout(3, 2, CODES, 7, 1, False, codec.fingerprint, 2, 4, words=6, sound="s", fps=12.0)
    config = layout.model(2, 2, 16)
    sizes = {"vocab_size": config.vocab_size, "block_size": config.block_size}
    model = TrainedTokens(pair(torch.float64, 3, **sizes)[0], layout, [], TrainConfig(), 1)
    sounds = [torch.randint(7, (n, 2), generator=torch.Generator().manual_seed(n)) for n in (4, 9)]
    options = TokenOptions(top_k=9, top_p=0.9)
    source = TokenSource(model, codec, options, sounds=sounds)
    request = Request(count=2, batch=2, frames=12, seed=5)
    found = source.tokens(request, [0, 1], lambda n: None)
    for number, sound in enumerate(sounds):
        film: list[int] = []
        for frame in range(6):
            first = max(0, frame - 1)
            rows = uniforms(5, [number], frame, 4)[0]
            heard = [int(x) for i in range(3) for x in sound[min(first + i, len(sound) - 1)]]
            given = [*heard, *(code + 7 for code in film[first * 4 :])]
            drawn: list[int] = []
            for i in range(4):
                logits = model.model(torch.tensor([given + [code + 7 for code in drawn]]))[:, -1, 7:]
                drawn.append(int(pick(logits.detach(), rows[i : i + 1], options.drawing)))
            film += drawn
        assert found[number].flatten().tolist() == film
    assert source.names(request) == ["sound 0", "sound 1"]
    other = TokenSource(model, codec, options, sounds=[sounds[0], sounds[1] ^ 1])
    assert source.notes(request) != other.notes(request)
    with pytest.raises(ValueError, match="audio must be at least one sound, got none"):
        TokenSource(model, codec, options)
    with pytest.raises(ValueError, match="audio must be left out for this model, got 2"):
        TokenSource(trained(codec), codec, options, sounds=sounds)
    with pytest.raises(ValueError, match=r"a sound's tokens must be \(t, 2\), got \(4, 3\)"):
        TokenSource(model, codec, options, sounds=[torch.zeros(4, 3)])
