"""Frames read here and there are the frames of a full decode, whatever the codec does to their order."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from latte_fast.media import video
from latte_fast.media.video import VideoError, read, scan
from tests.helpers.films import decode, encode, moving

# name: suffix, codec, options, whether frames can be found by their times
CODECS: dict[str, tuple[str, str, dict[str, str], bool]] = {
    "h264": (".mp4", "libx264", {"g": "12"}, True),
    "h264 one keyframe": (".mp4", "libx264", {}, True),
    "h264 deep pyramid": (".mkv", "libx264", {"x264-params": "keyint=15:bframes=7:b-pyramid=normal:b-adapt=0"}, True),
    "h264 open gop": (".mp4", "libx264", {"x264-params": "open-gop=1:keyint=9:bframes=3:b-adapt=0"}, True),
    "h264 intra refresh": (".mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=10"}, True),
    "h264 all keyframes": (".mov", "libx264", {"g": "1"}, True),
    "h264 transport stream": (".ts", "libx264", {"g": "10"}, True),
    # without its vector code, which corrupts memory on frames this small and crashed within some encodes
    "hevc": (".mp4", "libx265", {"x265-params": "keyint=12:bframes=4:log-level=none:asm=none"}, True),
    "mpeg4": (".avi", "mpeg4", {"g": "10"}, True),
    "mpeg4 with b in avi": (".avi", "mpeg4", {"g": "10", "bf": "2"}, True),
    "mpeg4 with b in mp4": (".mp4", "mpeg4", {"g": "10", "bf": "2"}, True),
    "mpeg2": (".mpg", "mpeg2video", {"g": "10", "bf": "2"}, False),
    "vp8": (".webm", "libvpx", {"g": "15", "auto-alt-ref": "1", "lag-in-frames": "10"}, False),
    "vp9": (".webm", "libvpx-vp9", {"g": "15", "auto-alt-ref": "1", "lag-in-frames": "10", "cpu-used": "8"}, True),
    "mjpeg": (".avi", "mjpeg", {}, True),
}


def made(tmp_path: Path, name: str, frames: int = 40, times: list[int] | None = None) -> Path:
    suffix, codec, options, _ = CODECS[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    return encode(tmp_path / f"a{suffix}", moving(frames), codec, options, times, fmt)


def check(path: Path) -> None:
    full, timeline = decode(path), scan(path)
    assert timeline.frames == len(full)
    rng = np.random.default_rng(0)
    asked = [[0], [len(full) - 1], list(range(len(full))), [30, 3, 3, 17]]
    asked += [list(range(start, start + 13, 3)) for start in range(len(full) - 13 + 1)]
    asked += [sorted(rng.choice(len(full), 4, replace=False).tolist()) for _ in range(10)]
    for places in asked:
        assert np.array_equal(read(path, timeline, places), full[places]), places


@pytest.mark.parametrize("name", CODECS)
def test_read_equals_a_full_decode(tmp_path: Path, name: str) -> None:
    path = made(tmp_path, name)
    check(path)
    assert (scan(path).times is not None) == CODECS[name][3]


@pytest.mark.parametrize("name", ["h264", "h264 deep pyramid", "vp9"])
def test_read_by_uneven_times(tmp_path: Path, name: str) -> None:
    times = np.cumsum(np.random.default_rng(1).integers(1, 9, 40)).tolist()
    path = made(tmp_path, name, times=times)
    timeline = scan(path)
    assert timeline.times is not None and not isinstance(timeline.times, range)
    check(path)


def test_frames_before_the_films_own_start_are_none(tmp_path: Path) -> None:
    """A film cut without encoding it again keeps what its first frame refers to, and a list that hides it."""
    path = encode(tmp_path / "a.mp4", moving(40), options={"g": "12"}, times=list(range(-5, 35)))
    with av.open(str(path)) as box:
        assert sum(packet.is_discard for packet in box.demux(video=0)) == 5
    assert len(decode(path)) == 35
    check(path)


def test_read_without_a_frame_count(tmp_path: Path) -> None:
    path = made(tmp_path, "h264 transport stream")
    with av.open(str(path)) as box:
        assert box.streams.video[0].frames == 0
    check(path)


def test_read_converts_wanted_frames_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path, "h264")
    timeline, converted = scan(path), []
    original = video._converter

    def counting():
        convert = original()
        return lambda frame, path: converted.append(frame.pts) or convert(frame, path)

    monkeypatch.setattr(video, "_converter", counting)
    read(path, timeline, [20, 23, 26])
    assert len(converted) == 3


class Counting:
    """A decoder that counts the frames it puts out."""

    def __init__(self, codec: av.VideoCodecContext, counts: list[int]) -> None:
        self.__dict__.update(codec=codec, counts=counts)

    def __getattr__(self, name: str) -> object:
        return getattr(self.codec, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.codec, name, value)

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        frames = self.codec.decode(packet)
        self.counts.append(len(frames))
        return frames


@pytest.mark.parametrize(("name", "most"), [("h264", 6), ("h264 all keyframes", 4), ("h264 deep pyramid", 10)])
def test_read_decodes_from_the_keyframe_what_is_referred_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    """Frames 26 and 29: the last keyframe is 24; 26 itself; 15, where half of those between are no reference."""
    path = made(tmp_path, name)
    timeline, counts, original = scan(path), [], video._codec
    monkeypatch.setattr(video, "_codec", lambda *args: Counting(original(*args), counts))
    read(path, timeline, [26, 29])
    assert 2 <= sum(counts) <= most


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_films_are_turned_as_their_file_says(tmp_path: Path, matrix: tuple[int, ...], turns: int) -> None:
    path = encode(tmp_path / "a.mp4", moving(5))
    lying, content = decode(path), bytearray(path.read_bytes())
    # the matrix of the track header, a, b, u, c, d, v, x, y, w in 16.16 and 2.30
    a, b, c, d = (value << 16 for value in matrix)
    begin = content.index(b"tkhd") + 44
    content[begin : begin + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    assert np.array_equal(read(path, scan(path), [0, 4]), np.rot90(lying, turns, (1, 2))[[0, 4]])


def test_colon_and_percent_in_a_name(tmp_path: Path) -> None:
    path = encode(tmp_path / "b" / "x.mp4", moving(5))
    odd = path.rename(tmp_path / "file:%03d 'a.mp4")
    assert len(read(odd, scan(odd), [0, 4])) == 2


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is no video" * 100)
    whole = encode(tmp_path / "whole.mp4", moving(40))
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:-2000])
    for name in ("empty.mp4", "text.mp4", "cut.mp4", "missing.mp4"):
        with pytest.raises(VideoError, match=name):
            scan(tmp_path / name)


@pytest.mark.parametrize("name", ["h264", "mpeg4", "mpeg2", "vp9", "h264 transport stream"])
def test_damaged_files_give_frames_or_a_video_error(tmp_path: Path, name: str) -> None:
    whole = made(tmp_path, name)
    data, rng = whole.read_bytes(), np.random.default_rng(0)
    for number in range(12):
        damaged = bytearray(data)
        for place in rng.integers(len(data), size=(1, 20, 200)[number % 3]):
            damaged[place] = int(rng.integers(256))
        path = tmp_path / f"damaged{whole.suffix}"
        path.write_bytes(damaged)
        try:
            assert read(path, scan(path), [0]).dtype == np.uint8
        except VideoError as error:
            assert str(path) in str(error)


def test_a_title_in_an_old_encoding(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", moving(5), "mpeg4")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Lavf", b"Lav\xe9", 1))
    assert b"Lav\xe9" in path.read_bytes() and len(read(path, scan(path), [4])) == 1


def test_a_file_that_lost_its_end_after_it_was_scanned(tmp_path: Path) -> None:
    path = made(tmp_path, "h264 transport stream")
    timeline = scan(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match=r"frame .* of 40 does not decode"):
        read(path, timeline, [1, 39])
    path.unlink()
    with pytest.raises(VideoError, match=r"a\.ts: No such file"):
        read(path, timeline, [1])


def test_frames_of_several_sizes(tmp_path: Path) -> None:
    """Two recordings laid end to end: a set must be able to leave such a film out, as it does any that fails."""
    small, large = (encode(tmp_path / f"{n}.ts", moving(5, n, n), "mpeg2video") for n in (32, 64))
    path = tmp_path / "both.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    timeline = scan(path)
    assert read(path, timeline, [0, 1]).shape[1:] == (32, 32, 3)
    with pytest.raises(VideoError, match="its frames must have one size"):
        read(path, timeline, [0, timeline.frames - 1])


def test_read_bad_places(tmp_path: Path) -> None:
    path = made(tmp_path, "mjpeg", 5)
    for places in ([], [5], [-1], [-1, 3], [0, 5]):
        with pytest.raises(ValueError, match=r"places must be in 0 \.\. 4"):
            read(path, scan(path), places)
