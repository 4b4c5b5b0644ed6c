"""How the files of a set end, for those who look at names alone."""

VIDEOS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".gif")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# least and most frames a second of a film: a gif counts hundredths of a second, and slower ones round to no time at all
FPS = (0.01, 1000)
