"""Suffixes of video, sound and picture files, and limits of the frame rate, without an import of PyAV."""

VIDEOS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".gif")
SOUNDS = (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# lowest and highest frames a second: a gif's rate has a denominator of at most 100, so that a lower one would be 0
FPS = (0.01, 1000)
