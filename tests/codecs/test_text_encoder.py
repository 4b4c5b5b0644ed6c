"""Captions as the T5 of a pipeline's folder embeds them: the pipeline's own numbers, every wrong folder named."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from latte_fast.cli.encode_text import encode_text as command
from latte_fast.codecs.text_encoder import TOKENS, open_text_encoder
from tests.helpers.pipelines import diffusers, pipeline

CAPTIONS = ["  A dog RUNS ", "", "ab " * TOKENS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latte-1")
    pipeline().save_pretrained(path)
    return path


def test_embeddings_are_the_pipelines(folder: Path) -> None:
    """Of what it pads too: a token of padding is what the model sees where its mask is left out."""
    pipe = diffusers.LattePipeline.from_pretrained(folder)
    # as the pipeline's own call does: with gradients recorded another attention rounds otherwise
    with torch.no_grad():
        want = pipe.encode_prompt(CAPTIONS, do_classifier_free_guidance=False, mask_feature=False)[0]
    encoder = open_text_encoder(folder)
    hidden, mask = encoder(CAPTIONS)
    assert (encoder.name, encoder.channels, encoder.tokens) == (folder.name, 40, 120)
    assert hidden.shape == (3, 120, 40) and hidden.dtype == torch.float32 and not hidden.requires_grad
    assert torch.equal(hidden, want) and hidden.std() > 0.1
    rows = [pipe.tokenizer(text).input_ids for text in ("a dog runs", "", "ab " * TOKENS)]
    assert mask.dtype == torch.bool and mask.sum(1).tolist() == [len(rows[0]), 1, 120]
    assert [encoder.surplus(caption) for caption in CAPTIONS] == [0, 0, len(rows[2]) - 120]


def test_encoder_runs_in_the_dtype_asked_for(folder: Path) -> None:
    encoder = open_text_encoder(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in encoder.network.parameters()} == {torch.bfloat16} and not encoder.network.training
    assert encoder(["a"])[0].dtype == torch.float32
    assert not torch.equal(encoder(["a"])[0], open_text_encoder(folder)(["a"])[0])


def test_encode_text_command_reads_the_pipelines_folder(folder: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"a": "a dog", "b": "ab " * TOKENS}))
    command(captions, folder, tmp_path / "out", dtype="float32", device="cpu")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["cut"] == 1 and index["tokens"] == 120


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder"])
def test_folders_that_hold_no_t5(folder: Path, part: str, tmp_path: Path) -> None:
    for name in ("tokenizer", "text_encoder"):
        shutil.copytree(folder / name, tmp_path / name)
    for file in (tmp_path / part).iterdir():
        file.write_text("{")
    with pytest.raises(ValueError, match=r"encode-text: pretrained must hold a T5, got .*"):
        open_text_encoder(tmp_path)
    shutil.rmtree(tmp_path / part)
    with pytest.raises(ValueError, match=f"pretrained must be a folder with {part}/ in it, got"):
        open_text_encoder(tmp_path)
