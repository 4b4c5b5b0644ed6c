"""Reads single frames of a video file: seeks, decodes only what they need, converts only them."""

import bisect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

# codecs in which each packet is one shown frame; VP8, for one, has packets that are only referred to
ONE_FRAME_A_PACKET = frozenset(
    ("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp9", "av1", "mjpeg", "prores", "ffv1", "png")
)
# codecs whose non-reference frames no frame needs; in HEVC that holds within a temporal layer only
SKIPPABLE = frozenset(("h264", "mpeg1video", "mpeg2video", "mpeg4"))
# bytes: MPEG-4 packets that only repeat the last picture, and yield no frame, are shorter, all others longer
EMPTY_MPEG4 = 10
# exceptions of PyAV on damaged files; IndexError where a stream appears in mid-file
FAILURES = (av.FFmpegError, OSError, IndexError)


class VideoError(RuntimeError):
    """Raised for a file that does not decode as it should; the message begins with its name."""


@dataclass(frozen=True)
class Timeline:
    """When each frame of a video is shown, and where decoding can begin.

    Args:
        frames: number of frames.
        times: presentation times, ascending, in the stream's units; None where those of the file can't be trusted,
            so that frames are counted from the start.
        keys: times of the keyframes.
    """

    frames: int
    times: Sequence[int] | None
    keys: Sequence[int] = ()


def _open(path: str | os.PathLike) -> InputContainer:
    # "file:" keeps a colon in the name from being read as a protocol; old AVIs hold titles in any encoding
    return av.open(f"file:{os.fspath(path)}", metadata_errors="replace")


def _codec(box: InputContainer, path: str | os.PathLike) -> VideoCodecContext:
    if not box.streams.video:
        raise VideoError(f"{path}: has no video stream")
    codec = box.streams.video[0].codec_context
    if codec is None:
        raise VideoError(f"{path}: there is no decoder for its video stream")
    # many workers decode many clips, so that threads inside one decoder only cost time
    codec.thread_type, codec.thread_count = "NONE", 1
    return codec


def scan(path: str | os.PathLike) -> Timeline:
    """Returns a file's timeline: from its packets, without decoding, where they are regular; else by decoding it."""
    try:
        with _open(path) as box:
            codec = _codec(box, path)
            packets = [p for p in box.demux(box.streams.video[0]) if p.size]
            if not packets:
                raise VideoError(f"{path}: holds no frames")
            times = [p.pts for p in packets]
            regular = (
                codec.name in ONE_FRAME_A_PACKET
                and packets[0].is_keyframe
                and None not in times
                and len(set(times)) == len(times)
                and packets[0].pts == min(t for t in times if t is not None)
                and not any(p.is_discard or p.is_corrupt for p in packets)
                and not (codec.name == "mpeg4" and min(p.size for p in packets) < EMPTY_MPEG4)
            )
            if regular:
                keys = sorted(p.pts for p in packets if p.is_keyframe and p.pts is not None)
                return Timeline(len(times), compact(sorted(t for t in times if t is not None)), compact(keys))
        with _open(path) as box:
            _codec(box, path)
            frames = sum(1 for _ in box.decode(video=0))
    except FAILURES as error:
        raise VideoError(f"{path}: {_reason(error)}") from error
    if not frames:
        raise VideoError(f"{path}: holds no frames")
    return Timeline(frames, None)


def compact(times: list[int]) -> Sequence[int]:
    """Returns evenly spaced numbers as a range, a few bytes instead of a list in each worker; others unchanged."""
    step = times[1] - times[0] if len(times) > 1 else 1
    even = range(times[0], times[0] + step * len(times), step)
    return even if list(even) == times else times


def read(path: str | os.PathLike, timeline: Timeline, places: Sequence[int]) -> np.ndarray:
    """Returns uint8 (n, H, W, 3): frames `places` of a full decode, in the order given, repeats included.

    Raises VideoError when the file does not give them.
    """
    if not places or min(places) < 0 or max(places) >= timeline.frames:
        raise ValueError(f"read: places must be in 0 .. {timeline.frames - 1}, got {list(places)}")
    wanted = sorted(set(places))
    try:
        if timeline.times is None:
            found = dict(_counted(path, wanted))
        else:
            found = dict(_timed(path, timeline, wanted))
            if len(found) < len(wanted):
                # a container may seek past the requested keyframe; from the start nothing can be missed
                found = dict(_timed(path, timeline, wanted, seek=False))
    except FAILURES as error:
        raise VideoError(f"{path}: {_reason(error)}") from error
    missing = [place for place in wanted if place not in found]
    if missing:
        raise VideoError(f"{path}: frame {missing[0]} of {timeline.frames} does not decode")
    if len({picture.shape for picture in found.values()}) > 1:
        raise VideoError(f"{path}: its frames must have one size, got several")
    return np.stack([found[place] for place in places])


def _timed(
    path: str | os.PathLike, timeline: Timeline, wanted: list[int], seek: bool = True
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields frames by their time, decoding from the keyframe before the first to the last packet that is needed."""
    assert timeline.times is not None
    place_of = {timeline.times[place]: place for place in wanted}
    left = set(place_of)
    picture = _converter()
    with _open(path) as box:
        codec, stream = _codec(box, path), box.streams.video[0]
        key = bisect.bisect_right(timeline.keys, timeline.times[wanted[0]]) - 1
        if seek and key > 0:
            box.seek(timeline.keys[key], stream=stream)
        skippable = codec.name in SKIPPABLE
        for packet in box.demux(stream):
            if skippable:
                codec.skip_frame = "DEFAULT" if packet.pts in place_of else "NONREF"
            for frame in codec.decode(packet):
                if frame.pts in place_of:
                    yield place_of[frame.pts], picture(frame, path)
            left.discard(packet.pts)
            if not left:
                break
        # frames left in the reordering buffer; where the loop ran to the file's end, it was flushed there
        for frame in codec.decode(None) if not left else []:
            if frame.pts in place_of:
                yield place_of[frame.pts], picture(frame, path)


def _counted(path: str | os.PathLike, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields frames by counting from the start."""
    chosen = set(wanted)
    picture = _converter()
    with _open(path) as box:
        _codec(box, path)
        for place, frame in enumerate(box.decode(video=0)):
            if place in chosen:
                yield place, picture(frame, path)
            if place >= wanted[-1]:
                return


def _converter() -> Callable[[VideoFrame, str | os.PathLike], np.ndarray]:
    """Returns a function from a decoded frame to uint8 (H, W, 3), which reuses its conversion tables."""
    reformatter = VideoReformatter()

    def picture(frame: VideoFrame, path: str | os.PathLike) -> np.ndarray:
        if frame.is_corrupt:
            raise VideoError(f"{path}: a frame is damaged")
        # phones store upright films on their side, with a rotation for the player
        return np.rot90(reformatter.reformat(frame, format="rgb24").to_ndarray(), round(frame.rotation / 90))

    return picture


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
