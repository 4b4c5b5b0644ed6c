"""How the files of a set end, for those who look at names alone."""

VIDEOS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".gif")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
