"""Training of token transformers: losses against the authors' formula, weight decay, resume, ranks, what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latte_fast import reference
from latte_fast.codecs.clip_bpe import ClipBPE
from latte_fast.data import DataConfig, open_dataset
from latte_fast.data.encode_sounds import encode_sounds
from latte_fast.data.item import DataError
from latte_fast.diffusion.noise import mistakes
from latte_fast.models.checkpoint import read_checkpoint
from latte_fast.models.tats.files import save_vqgan
from latte_fast.runs.codec import open_vqgan
from latte_fast.runs.config import SampleConfig, TokenTraining
from latte_fast.runs.load import load
from latte_fast.runs.log import LOG, read_log
from latte_fast.runs.tokens import load_tokens
from latte_fast.training import Trainer
from tests.helpers.sounds import tone, write_sound_vqgan, write_wav
from tests.helpers.texts import write_bpe
from tests.helpers.tiny_tokens import tiny_tokens_run, write_tokens
from tests.helpers.tiny_vqgan import pair

TIMES = ("clips_per_s", "data_wait", "peak_bytes")
SMALL = TokenTraining(n_layer=2, n_head=2, n_embd=16)


def quiet(text: str) -> None:
    pass


def numbers(out: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_log(out / LOG)]


CELLS = [
    pytest.param({}, 8, (0, 16), id="classes"),
    pytest.param({"classes": False}, 8, (0, 16), id="without-classes"),
    pytest.param({"gap": True}, 10, (4, 16), id="gap"),
    pytest.param({"every": 4}, 18, (0, 12), id="key-frames"),
    pytest.param({"every": 4, "noise": 0.8}, 18, (0, 12), id="key-frames-noise"),
    pytest.param({"gap": True, "noise": 0.8}, 10, (4, 16), id="gap-noise"),
]


@pytest.mark.parametrize(("changes", "frames", "learned"), CELLS)
def test_losses_equal_the_oracle(
    tmp_path: Path, changes: dict[str, Any], frames: int, learned: tuple[int, int]
) -> None:
    """In float64, by the formula on all logits: condition, shifted codes, and for a gap nothing of its ends.

    With noise the model sees the random codes of each sample's number, and learns the frames after them alone.
    """
    options = replace(SMALL, **changes)
    trainer = Trainer(tiny_tokens_run(tmp_path / "run", tokens=options, frames=frames), say=quiet)
    model: Any = trainer.objective.learners["model"].model.double()
    batch = next(trainer.batches())
    given = {"vocab_size": 24 + 3 * options.classes, "block_size": model.config.block_size}
    given |= {"n_unmasked": 4 * options.gap}
    oracle = reference.token_transformer.TokenTransformer(**given, n_layer=2, n_head=2, n_embd=16).double()
    oracle.load_state_dict(model.state_dict())
    kept = batch["tokens"][:, :: options.every]
    first = 3 if options.classes else 0
    codes = seen = kept.flatten(1) + first
    if options.noise:
        drawn = [mistakes(0, number, kept.shape[1:], 24, options.noise, options.gap) for number in range(4)]
        wrong, given_frames = torch.stack([wrong for wrong, _ in drawn]), [frames for _, frames in drawn]
        assert torch.equal(batch["mistakes"], wrong) and max(given_frames) > 0
        seen = torch.where(wrong < 0, kept, wrong).flatten(1) + first
        assert (seen != codes).any()
    label = batch["label"] if options.classes else torch.zeros(4, dtype=torch.int64)
    assert codes.shape[1] == model.config.block_size and label.unique().numel() == (3 if options.classes else 1)
    logits = oracle(torch.cat([label[:, None], seen[:, :-1]], 1))
    every = nn.functional.cross_entropy(logits.movedim(-1, 1), codes, reduction="none")
    want = every[:, learned[0] : learned[1]].mean(1)
    if options.noise and not options.gap:
        want = torch.stack([row[4 * frames :].mean() for row, frames in zip(every, given_frames, strict=True)])
    got = trainer.losses("model", batch)["loss"]
    torch.testing.assert_close(got, want.mean(), rtol=1e-11, atol=1e-12)
    got.backward(), want.mean().backward()
    for (name, p), q in zip(model.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_linear_weights_alone_decay(tmp_path: Path) -> None:
    """A step with a gradient of zero shrinks them and leaves the others; the authors' betas reach the optimizer."""
    trainer = Trainer(tiny_tokens_run(tmp_path / "run"), say=quiet)
    learner = trainer.objective.learners["model"]
    before = {name: p.detach().clone() for name, p in learner.weights.by_name.items()}
    for p in learner.weights.trained.values():
        p.grad = torch.zeros_like(p)
    learner.update(0, 3e-3, wants_norm=False)
    shrunk = {name for name, p in learner.weights.by_name.items() if not torch.equal(p, before[name])}
    layers = ("attn.query", "attn.key", "attn.value", "attn.proj", "mlp.0", "mlp.2")
    assert shrunk == {f"blocks.{i}.{layer}.weight" for i in range(2) for layer in layers} | {"head.weight"}
    share = learner.weights.by_name["head.weight"] / before["head.weight"]
    torch.testing.assert_close(share, torch.full_like(share, 1 - 3e-3 * 0.01), rtol=1e-6, atol=0)
    assert learner.optimizer.param_groups[1]["betas"] == (0.9, 0.95)


def test_loss_with_captions(tmp_path: Path) -> None:
    """A caption's tokens come before the codes, and nothing is learned of them: the oracle's loss by hand."""
    captions = {f"{i}.mp4": f"move {i}" for i in range(11)}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    vocabulary = write_bpe(tmp_path / "bpe.txt.gz")
    options = TokenTraining(2, 2, 16, captions=str(tmp_path / "captions.json"), bpe=str(vocabulary), words=6)
    trainer = Trainer(tiny_tokens_run(tmp_path / "run", tokens=options, steps=1), say=quiet)
    objective: Any = trainer.objective
    layout, bpe, model = objective.layout, ClipBPE(vocabulary), objective.learner.model
    assert (layout.conditions, layout.words, layout.bpe, objective.classes) == (522, 6, bpe.digest, [])
    assert model.config.vocab_size == 522 + 24 and model.config.block_size == 6 + layout.frames * 4
    items = [objective.dataset[0, index] for index in (3, 7)]
    batch = {name: torch.stack([item[name] for item in items]) for name in ("tokens", "words")}
    assert torch.equal(batch["words"], bpe.tokens(["move 3", "move 7"], 6))
    oracle = reference.token_transformer.TokenTransformer(**vars(model.config))
    oracle.load_state_dict(model.state_dict())
    whole = torch.cat([batch["words"], batch["tokens"].flatten(1) + 522], 1)
    logits = oracle(whole[:, :-1])[:, 5:]
    want = nn.functional.cross_entropy(logits.movedim(-1, 1), whole[:, 6:], reduction="none").mean(1)
    torch.testing.assert_close(objective.losses("model", batch, 0)["loss"], want, rtol=1e-5, atol=1e-6)
    assert trainer.run() == 1 and load_tokens(tmp_path / "run").layout == layout
    del captions["4.mp4"]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    with pytest.raises(ValueError, match=r"captions must hold every clip, got none of 4\.mp4 \(1 of 11 lack one\)"):
        Trainer(tiny_tokens_run(tmp_path / "other", tokens=options), say=quiet)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokens") / "whole"
    assert Trainer(tiny_tokens_run(out), say=quiet).run() == 12
    return out


def test_resume_is_exact(whole: Path, tmp_path: Path) -> None:
    shards = whole.parent / "token-shards"
    first = tiny_tokens_run(tmp_path / "run", shards, steps=7)
    assert Trainer(first, say=quiet).run() == 7
    assert Trainer(replace(first, steps=12), resume=True, say=quiet).run() == 12
    assert numbers(tmp_path / "run") == numbers(whole) and len(numbers(whole)) == 12
    last = "checkpoints/step-0000012/ema.safetensors"
    found, want = read_checkpoint(tmp_path / "run" / last), read_checkpoint(whole / last)
    assert all(torch.equal(found[key], value) for key, value in want.items())


def test_run_is_loaded(whole: Path) -> None:
    trained = load_tokens(whole)
    assert trained.step == 12 and trained.classes == ["a", "b", "c"]
    assert (trained.layout.frames, trained.layout.side, trained.layout.conditions) == (4, 2, 3)
    state = read_checkpoint(whole / "checkpoints/step-0000012/ema.safetensors")
    assert all(torch.equal(x, state[name]) for name, x in trained.model.state_dict().items())
    assert load_tokens(whole / "checkpoints" / "step-0000008", "model").step == 8
    with pytest.raises(ValueError, match=r"runs\.tokens\.load_tokens and `latte-fast sample` take a token"):
        load(whole)
    with pytest.raises(ValueError, match="path must be the run of a token transformer"):
        load_tokens(whole.parent / "token-shards")


@pytest.mark.parametrize("precision", ["bf16", "bf16-weights"])
def test_half_precision_trains(tmp_path: Path, precision: Any) -> None:
    """Close to fp32 at the first step, whose weights are the same."""
    exact = Trainer(tiny_tokens_run(tmp_path / "fp32", steps=1), say=quiet)
    half = Trainer(tiny_tokens_run(tmp_path / "half", steps=1, precision=precision), say=quiet)
    exact.run(), half.run()
    (want,), (got,) = numbers(tmp_path / "fp32"), numbers(tmp_path / "half")
    assert got["loss"] == pytest.approx(want["loss"], rel=5e-3) and got["loss"] != want["loss"]


def test_films_become_tokens_in_training(tmp_path: Path) -> None:
    """Clips of shapes through the VQGAN give the tokens that it gives them, and previews are drawn."""
    save_vqgan(pair(n_codes=24)[0], tmp_path / "vqgan.safetensors")
    data = DataConfig(kind="shapes", clips=11)
    given = {"data": data, "vae": str(tmp_path / "vqgan.safetensors"), "steps": 2}
    sample = SampleConfig(every=2, count=3)
    trainer = Trainer(tiny_tokens_run(tmp_path / "run", **given, sample=sample), say=quiet)
    objective: Any = trainer.objective
    batch = next(trainer.batches())
    codec = open_vqgan(tmp_path / "vqgan.safetensors")
    assert torch.equal(objective.tokens(batch), codec.network.encode(batch["video"].movedim(1, 2)))
    assert objective.layout.fingerprint == codec.fingerprint and objective.layout.conditions == 12
    assert trainer.run() == 2
    assert (tmp_path / "run" / "samples" / "step-0000002.png").stat().st_size > 100


def test_clips_of_tokens(tmp_path: Path) -> None:
    """Starts and mirrorings vary by epoch, and every clip is a part of its film or of the mirrored one."""
    folder = write_tokens(tmp_path / "t")
    data = DataConfig(kind="tokens", path=str(folder), interval=1, flip=True)
    clips = open_dataset(data, 8, 8)
    film = clips.tokens.read(3)  # type: ignore[union-attr]
    seen = set()
    for epoch in range(24):
        item = clips[(epoch, 3)]
        assert item["tokens"].shape == (4, 2, 2) and item["label"].item() == 0
        for flipped, whole in ((False, film), (True, film.flip(-1))):
            seen |= {(flipped, s) for s in range(6) if torch.equal(item["tokens"], whole[s : s + 4])}
    assert len(seen) >= 8
    shard = folder / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:200] + bytes(len(shard.read_bytes()) - 200))
    with pytest.raises(DataError, match=r"tokens: .*00000\.safetensors"):
        open_dataset(data, 8, 8)[(0, 3)]


def kills(folder: Path, count: int) -> None:
    command = [sys.executable, "-m", "tests.helpers.kills", str(folder), str(count), "3", "tokens"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{count} kills")


@pytest.mark.slow
def test_kills_at_random_resume_bit_identical(tmp_path: Path) -> None:
    kills(tmp_path, 20)


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """Replicated and sharded; and films are the same files on one process and two."""
    command = [sys.executable, "-m", "tests.helpers.spread_tokens", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    logs = json.loads(done.stdout.splitlines()[-1])
    for name, alone, limit in (("two", "one", 2e-5), ("sharded", "one", 2e-5), ("sharded-master", "master", 5e-3)):
        assert len(logs[name]) == len(logs[alone]) == 5
        for got, want in zip(logs[name], logs[alone], strict=True):
            for key in ("loss", "grad_norm"):
                assert got[key] == pytest.approx(want[key], rel=limit), (name, got["step"], key)
    films = sorted(p.name for p in (tmp_path / "films-one").iterdir())
    assert films == ["000000.mp4", "000001.mp4", "000002.mp4", "samples.json"]
    for film in films:
        assert (tmp_path / "films-one" / film).read_bytes() == (tmp_path / "films-two" / film).read_bytes()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"frames": 7}, "frames must be a multiple of the VQGAN's 2, got 7"),
    ({"frames": 20}, "videos must have at least 10 frames"),
    ({"size": 16}, "size must be the 8 pixels of"),
    ({"images": 2}, "images must be 0 for a token transformer"),
    ({"compile": True}, "compile must be off for a token transformer"),
    ({"objective": "denoising"}, "data.kind must be another for this objective"),
    ({"objective": "vqgan"}, "data.kind must be another for this objective"),
    ({"data": DataConfig(kind="shapes")}, "vae must be a VQGAN's file or run, which makes the clips' tokens"),
    ({"sample": SampleConfig(every=1)}, "vae must be a VQGAN's file or run, which decodes what is drawn"),
    ({"pretrained": "nowhere.ckpt"}, "pretrained must be an existing file, got 'nowhere.ckpt'"),
    ({"frames": 4, "tokens": replace(SMALL, gap=True)}, "frames must be at least 3 latent frames of 2, 1 apart"),
    ({"frames": 4, "tokens": replace(SMALL, every=4)}, "frames must be at least 2 latent frames of 2, 4 apart"),
    ({"frames": 2, "tokens": replace(SMALL, noise=0.2)}, "frames must be at least 2 latent frames of 2, 1 apart"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_tokens_run(tmp_path / "run", **changes), say=quiet)
    assert not (tmp_path / "run").exists()


def test_another_vocabulary_is_refused(tmp_path: Path, whole: Path) -> None:
    """Weights of other codes, tokens of another VQGAN, and options that contradict each other."""
    weights = str(whole / "checkpoints/step-0000012/ema.safetensors")
    write_tokens(tmp_path / "wide", n_codes=30)
    with pytest.raises(ValueError, match="pretrained must be of the data's vocabulary of 33 tokens, got 27"):
        Trainer(tiny_tokens_run(tmp_path / "run", tmp_path / "wide", pretrained=weights), say=quiet)
    shards = whole.parent / "token-shards"
    again = Trainer(tiny_tokens_run(tmp_path / "again", shards, pretrained=weights), say=quiet)
    state = read_checkpoint(Path(weights))
    weights_now = again.objective.learners["model"].weights.by_name
    assert all(torch.equal(weights_now[name], x) for name, x in state.items())
    save_vqgan(pair(n_codes=24)[0], tmp_path / "vqgan.safetensors")
    given = {"vae": str(tmp_path / "vqgan.safetensors"), "sample": SampleConfig(every=1)}
    with pytest.raises(ValueError, match="vqgan must be the one that encoded"):
        Trainer(tiny_tokens_run(tmp_path / "run", shards, **given), say=quiet)
    with pytest.raises(ValueError, match=r"tokens\.every must be 1 for a model that fills gaps, got 4"):
        TokenTraining(every=4, gap=True)
    with pytest.raises(ValueError, match=r"tokens\.noise must be at least 0 and below 1, got 1\.5"):
        TokenTraining(noise=1.5)
    with pytest.raises(ValueError, match=r"tokens\.n_embd must be a multiple of tokens\.n_head = 16, got 100"):
        TokenTraining(n_embd=100)


def test_loss_with_sounds(tmp_path: Path) -> None:
    """The sound of a clip's latent frames comes before its codes: the oracle's loss by hand."""
    for i in range(11):
        write_wav(tmp_path / "sounds" / f"{i}.wav", tone(200 + 300 * i, 0.75, 8000), 8000)
    codec = open_vqgan(write_sound_vqgan(tmp_path / "sound.safetensors"))
    sounds = DataConfig(kind="sounds", path=str(tmp_path / "sounds"), fps=24.0)
    encode_sounds(sounds, tmp_path / "heard", codec)
    options = TokenTraining(1, 2, 16, sound=str(tmp_path / "heard"), sound_vae=str(tmp_path / "sound.safetensors"))
    trainer = Trainer(tiny_tokens_run(tmp_path / "run", tokens=options, steps=1), say=quiet)
    objective: Any = trainer.objective
    layout, model = objective.layout, objective.learner.model
    assert (layout.conditions, layout.words, layout.sound, layout.fps) == (12, 64, codec.fingerprint, 24.0)
    assert layout.sound_per_frame == 16 and objective.classes == [] and "11 clips with sounds" in objective.about()
    items = [objective.dataset[0, index] for index in (3, 7)]
    batch = {name: torch.stack([item[name] for item in items]) for name in ("tokens", "words")}
    oracle = reference.token_transformer.TokenTransformer(**vars(model.config))
    oracle.load_state_dict(model.state_dict())
    whole = torch.cat([batch["words"], batch["tokens"].flatten(1) + 12], 1)
    logits = oracle(whole[:, :-1])[:, 63:]
    want = nn.functional.cross_entropy(logits.movedim(-1, 1), whole[:, 64:], reduction="none").mean(1)
    torch.testing.assert_close(objective.losses("model", batch, 0)["loss"], want, rtol=1e-5, atol=1e-6)
    assert trainer.run() == 1 and load_tokens(tmp_path / "run").layout == layout
    for contradicts in ({"every": 2}, {"gap": True}, {"captions": "c.json", "bpe": "b.txt"}):
        with pytest.raises(ValueError, match=r"tokens\.sound must be empty"):
            replace(options, **contradicts)
    for changes, message in (
        ({"tokens": options, "data": DataConfig(kind="shapes")}, "data.kind must be tokens where sounds are given"),
        ({"tokens": replace(options, sound=str(tmp_path / "sounds"))}, "encode-audio` wrote"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(tiny_tokens_run(tmp_path / "other", **changes), say=quiet)
