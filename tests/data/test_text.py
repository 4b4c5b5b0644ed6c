"""Captions: embedded once, found by clip, gone on with after a stop, and every bad file named."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latte_fast.cli.encode_text import encode_text as command
from latte_fast.codecs.vae import open_vae
from latte_fast.data import DataConfig, encode, open_dataset
from latte_fast.data.encode_text import encode_text, read_captions
from latte_fast.data.shapes import CLASSES
from latte_fast.data.text import Texts
from tests.helpers.films import layout
from tests.helpers.texts import SHAPES, Letters, captions_file, shapes_texts

CLIPS = {"a/1.mp4": "a dog runs", "a/2": "rain", "b": "a cat", "b/9.mp4": "a dog runs"}


def test_rows_are_the_encoder_s(tmp_path: Path) -> None:
    index = encode_text(CLIPS, tmp_path / "texts", Letters(), dtype="float32", batch=2)
    texts = Texts(tmp_path / "texts")
    assert texts.captions == ["a dog runs", "rain", "a cat"] and len(index["clips"]) == 4
    want, masks = Letters()(texts.captions)
    for number in range(3):
        text, mask = texts[number]
        assert torch.equal(mask, masks[number])
        assert torch.equal(text[mask], want[number][mask]) and not text[~mask].any()
    assert torch.equal(texts.null, Letters()([""])[0][0])
    assert texts.null[1:].any(), "the empty caption's padding is embedded too"
    halves = encode_text(CLIPS, tmp_path / "halves", Letters())
    assert halves["dtype"] == "float16"
    torch.testing.assert_close(Texts(tmp_path / "halves")[0][0], texts[0][0], rtol=1e-3, atol=1e-3)


def test_names_with_and_without_suffix_and_folders(tmp_path: Path) -> None:
    encode_text(CLIPS, tmp_path / "texts", Letters())
    texts = Texts(tmp_path / "texts")
    assert texts.numbers(["a/1.mp4", "a/2.avi", "b/1.mp4", "b/deep/2.mp4", "b/9.mp4"]) == [0, 1, 2, 2, 0]
    encode_text({"beach": "sand", "x/y.png": "a y"}, tmp_path / "suffixes", Letters())
    texts = Texts(tmp_path / "suffixes")
    assert texts.numbers(["beach", "beach.MP4", "beach.png", "beach/2.mp4"]) == [0] * 4
    # a clip that is a folder has no suffix to leave out, and that of the set's own folder no name
    for name in ("beach.2", ".", "x"):
        with pytest.raises(ValueError, match=f"got none of {re.escape(name)} "):
            texts.numbers([name])
    encode_text({".": "all alike"}, tmp_path / "dot", Letters())
    assert Texts(tmp_path / "dot").numbers([".", "a/1.mp4"]) == [0, 0]


def test_lacking_captions_are_named(tmp_path: Path) -> None:
    encode_text(CLIPS, tmp_path / "texts", Letters())
    texts = Texts(tmp_path / "texts")
    with pytest.raises(ValueError, match=r"a caption of every clip, got none of a/3.mp4 \(2 of 3 lack one"):
        texts.numbers(["a/1.mp4", "a/3.mp4", "c/1.mp4"])


def test_dropped_captions_keep_the_mask(tmp_path: Path) -> None:
    encode_text(CLIPS, tmp_path / "texts", Letters(), dtype="float32")
    texts = Texts(tmp_path / "texts")
    text, mask = texts.embeddings([0, 1], [True, False])
    assert torch.equal(text[0], texts.null) and torch.equal(text[1], texts[1][0])
    assert torch.equal(mask, torch.stack([texts[0][1], texts[1][1]]))


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    clips = {f"{i}.mp4": f"caption number {i}" for i in range(7)}
    whole = encode_text(clips, tmp_path / "whole", Letters(), batch=2)

    class Stops(Letters):
        calls = 0

        def __call__(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            Stops.calls += 1
            if Stops.calls == 4:
                raise KeyboardInterrupt
            return super().__call__(captions)

    out = tmp_path / "parts"
    # every batch is a shard
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("latte_fast.data.shards.MEGABYTE", 1)
        encode_text(clips, out, Stops(), batch=2, shard_mb=1)
    with pytest.raises(ValueError, match=r"must be complete, got 4 of 7 captions; .*--resume"):
        Texts(out)
    with pytest.raises(ValueError, match="holds text: 4 of 7 captions; give resume"):
        encode_text(clips, out, Letters())
    with pytest.raises(ValueError, match="digest must be the same captions"):
        encode_text(clips | {"0.mp4": "another"}, out, Letters(), resume=True)
    index = encode_text(clips, out, Letters(), batch=2, resume=True)
    assert index["complete"] and index["firsts"] == [0, 2, 4] and whole["firsts"] == [0]
    for number in range(7):
        assert torch.equal(Texts(out)[number][0], Texts(tmp_path / "whole")[number][0])


class Other(Letters):
    """Other weights under the same name."""

    def _row(self, what: str) -> torch.Tensor:
        return super()._row(what + "!")


def begun(out: Path, clips: dict[str, str], dtype: str = "float16") -> None:
    """The first caption's shard, as a run that was stopped leaves it."""

    class Stops(Letters):
        def __call__(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            if captions[0] not in ("", next(iter(clips.values()))):
                raise KeyboardInterrupt
            return super().__call__(captions)

    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("latte_fast.data.shards.MEGABYTE", 1)
        encode_text(clips, out, Stops(), dtype=dtype, batch=1, shard_mb=1)


def test_goes_on_with_captions_in_another_order(tmp_path: Path) -> None:
    clips = {"1": "a dog runs", "2": "rain", "3": "a cat"}
    begun(tmp_path / "texts", clips, "float32")
    turned = {name: clips[name] for name in reversed(clips)}
    encode_text(turned, tmp_path / "texts", Letters(), dtype="float32", batch=1, resume=True)
    texts = Texts(tmp_path / "texts")
    for name, caption in clips.items():
        [number] = texts.numbers([name])
        want, mask = Letters()([caption])
        assert texts.captions[number] == caption
        assert torch.equal(texts[number][0][mask[0]], want[0][mask[0]])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_goes_on_with_the_same_encoder_alone(dtype: str, tmp_path: Path) -> None:
    begun(tmp_path / "texts", CLIPS, dtype)
    before = {p.name: p.read_bytes() for p in (tmp_path / "texts").iterdir()}
    with pytest.raises(ValueError, match=r"pretrained must be the one that .*null.safetensors was made with"):
        encode_text(CLIPS, tmp_path / "texts", Other(), dtype=dtype, resume=True)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "texts").iterdir()}
    assert encode_text(CLIPS, tmp_path / "texts", Letters(), dtype=dtype, resume=True)["complete"]


@pytest.mark.parametrize("content", [None, b"", b"x" * 100])
def test_goes_on_with_the_empty_caption_alone(content: bytes | None, tmp_path: Path) -> None:
    begun(tmp_path / "texts", CLIPS)
    null = tmp_path / "texts" / "null.safetensors"
    null.unlink() if content is None else null.write_bytes(content)
    with pytest.raises(ValueError, match=r"null.safetensors must hold the empty caption, to go on, got"):
        encode_text(CLIPS, tmp_path / "texts", Letters(), resume=True)


@pytest.mark.parametrize("field", ["encoder", "dtype", "digest"])
def test_an_index_without_a_field_is_named(field: str, tmp_path: Path) -> None:
    encode_text(CLIPS, tmp_path / "texts", Letters())
    file = tmp_path / "texts" / "index.json"
    index = json.loads(file.read_text())
    del index[field]
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"text: .*index.json must hold {field}, got an index without"):
        encode_text(CLIPS, tmp_path / "texts", Letters(), resume=True)


def test_long_captions_are_cut_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        index = encode_text({"1": "a b c d e f g h", "2": "a"}, tmp_path / "texts", Letters())
    assert index["cut"] == 1 and "cut after 6 tokens, 3 are left out: a b c d e f g h" in caplog.text
    assert Texts(tmp_path / "texts")[0][1].all()


@pytest.mark.parametrize("empty", [False, True])
def test_overflow_is_no_file(empty: bool, tmp_path: Path) -> None:
    class Large(Letters):
        def __call__(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            text, mask = super().__call__(captions)
            return text * (1e6 if (captions == [""]) == empty else 1), mask

    with pytest.raises(ValueError, match=f"embedding of '{'' if empty else 'a dog runs'}' must be finite in float16"):
        encode_text(CLIPS, tmp_path / "texts", Large())
    assert not (tmp_path / "texts").exists()
    encode_text(CLIPS, tmp_path / "texts", Large(), dtype="float32")
    Texts(tmp_path / "texts")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be a JSON file"),
        ("[1]", "must be a JSON object"),
        ("{}", "must be a JSON object"),
        ('{"a": 3}', "captions must be text, got 3 of a"),
        ('{"a": " "}', "captions must be text, got ' ' of a"),
        (r'{"a": "rain \ud83d"}', r"captions must be text of whole characters.*got 'rain \\ud83d' of 'a'"),
    ],
)
def test_bad_captions(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_captions(tmp_path / "captions.json")
    with pytest.raises(ValueError, match="which is no file"):
        read_captions(tmp_path / "none.json")


def test_captions_after_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps({"a": "rain"}), encoding="utf-8-sig")
    assert read_captions(tmp_path / "captions.json") == {"a": "rain"}


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"which has no index.json"):
        Texts(tmp_path / "none")
    folder = shapes_texts(tmp_path / "texts")
    null = folder / "null.safetensors"
    whole = null.read_bytes()
    save_file({"null": torch.zeros(3, 12)}, null)
    with pytest.raises(ValueError, match=r"null.safetensors must hold the empty caption as \(6, 12\), got \(3, 12\)"):
        Texts(folder)
    for content in (whole[:-1], None):
        null.unlink() if content is None else null.write_bytes(content)
        with pytest.raises(ValueError, match=r"must hold the empty caption as \(6, 12\), got .*can't be read"):
            Texts(folder)
    null.write_bytes(whole)
    shard = folder / "00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"must have {len(content)} bytes, got {len(content) - 1} bytes"):
        Texts(folder)
    shard.unlink()
    with pytest.raises(ValueError, match="got no such file"):
        Texts(folder)
    (folder / "index.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(ValueError, match="must hold done, got an index without"):
        Texts(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out must be a folder, got the file"):
        encode_text(SHAPES, tmp_path / "file", Letters())


def test_a_full_folder_is_refused_before_the_encoder_is_read(tmp_path: Path) -> None:
    """T5-XXL takes minutes; where there is no encoder, the message is not about it."""
    shapes_texts(tmp_path / "texts")
    (tmp_path / "captions.json").write_text(json.dumps({"a": "rain"}))
    with pytest.raises(SystemExit, match=r"encode-text: out must be a new or empty folder, got .* holds text: whole"):
        command(tmp_path / "captions.json", tmp_path / "no encoder", tmp_path / "texts")


@pytest.mark.parametrize("kind", ["ffs", "ucf101", "sky"])
@pytest.mark.parametrize("latents", [False, True])
def test_labels_are_captions(kind: str, latents: bool, tmp_path: Path) -> None:
    """Of clips, of their latents, and of the pictures beside them."""
    root = layout(kind, tmp_path / "set")
    plain = DataConfig(kind=kind, path=str(root), interval=2)  # type: ignore[arg-type]
    found = open_dataset(plain, 2, 16)
    names = [s.place.path.relative_to(root).as_posix() for s in found.sources]  # type: ignore[union-attr]
    clips = {name: f"clip {i}" for i, name in reversed(list(enumerate(names)))}
    encode_text(clips, tmp_path / "texts", Letters())
    if latents:
        encode.encode(plain, tmp_path / "latents", open_vae("identity"), 16, dtype="float32")
        plain = DataConfig(kind="latents", path=str(tmp_path / "latents"), interval=2)
    config = DataConfig(**plain.__dict__ | {"text": str(tmp_path / "texts")})
    dataset = open_dataset(config, 2, 16, images=2)
    assert dataset.texts is not None
    for i in range(len(dataset)):
        item = dataset[(0, i)]
        assert dataset.texts.captions[item["label"]] == f"clip {i}"
        assert item["image_labels"].shape == (2,)
    bad = tmp_path / "bad"
    encode_text({names[0]: "clip 0"}, bad, Letters())
    with pytest.raises(ValueError, match=f"lack one; it has {names[0]}"):
        open_dataset(DataConfig(**plain.__dict__ | {"text": str(bad)}), 2, 16)


def test_shapes_are_named_by_class(tmp_path: Path) -> None:
    config = DataConfig(kind="shapes", clips=12, text=str(shapes_texts(tmp_path / "texts")))
    dataset = open_dataset(config, 2, 8, images=1)
    assert dataset.texts is not None
    captions = [dataset.texts.captions[dataset[(0, i)]["label"]] for i in range(12)]
    assert captions == [SHAPES[name] for name in CLASSES]


def test_captions_of_pictures(tmp_path: Path) -> None:
    """Pictures in a folder of their own are named below it."""
    from latte_fast.media.write import write_png

    root = layout("ffs", tmp_path / "set")
    videos = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*.mp4"))]
    for name in ("x", "y"):
        write_png(tmp_path / "pictures" / f"{name}.png", torch.zeros(16, 16, 3, dtype=torch.uint8).numpy())
    clips = dict.fromkeys(videos, "a clip") | {"x.png": "an x", "y": "a y"}
    path = captions_file(tmp_path / "captions.json", clips)
    encode_text(read_captions(path), tmp_path / "texts", Letters())
    config = DataConfig(kind="ffs", path=str(root), interval=1, image_path=str(tmp_path / "pictures"),
                        text=str(tmp_path / "texts"))  # fmt: skip
    dataset = open_dataset(config, 2, 16, images=4)
    assert dataset.texts is not None
    seen = {dataset.texts.captions[n] for i in range(4) for n in dataset[(i, 0)]["image_labels"].tolist()}
    assert seen == {"an x", "a y"}
