"""Labels for contact sheets: capital letters and digits, three pixels by five."""

import numpy as np

# five rows of three pixels, the first row in the highest octal digit, the left pixel in its highest bit
GLYPHS = {
    " ": 0o00000, "-": 0o00700, ".": 0o00002, ",": 0o00024, ":": 0o02020, "/": 0o11244, "_": 0o00007, "%": 0o51245,
    "+": 0o02720, "=": 0o07070, "(": 0o12221, ")": 0o42224, "?": 0o61202,
    "0": 0o75557, "1": 0o26227, "2": 0o61247, "3": 0o61216, "4": 0o55711, "5": 0o74616, "6": 0o34757, "7": 0o71222,
    "8": 0o75757, "9": 0o75716,
    "A": 0o25755, "B": 0o65656, "C": 0o34443, "D": 0o65556, "E": 0o74647, "F": 0o74644, "G": 0o34553, "H": 0o55755,
    "I": 0o72227, "J": 0o11152, "K": 0o55655, "L": 0o44447, "M": 0o57755, "N": 0o65555, "O": 0o25552, "P": 0o65644,
    "Q": 0o25563, "R": 0o65655, "S": 0o34216, "T": 0o72222, "U": 0o55557, "V": 0o55552, "W": 0o55775, "X": 0o55255,
    "Y": 0o55222, "Z": 0o71247,
}  # fmt: skip
SCALE, MARGIN = 2, 3
# of a line, in pixels
HEIGHT = 5 * SCALE + 2 * MARGIN


def text(line: str, width: int) -> np.ndarray:
    """Draws a line as uint8 (16, width, 3), black on white, cut at the width; characters without a glyph show as ?."""
    bits = np.zeros((5, 4 * max(len(line), 1)), bool)
    for i, character in enumerate(line.upper()):
        glyph = GLYPHS.get(character, GLYPHS["?"])
        for row in range(5):
            for column in range(3):
                bits[row, 4 * i + column] = glyph >> (3 * (4 - row) + 2 - column) & 1
    bits = bits.repeat(SCALE, 0).repeat(SCALE, 1)[:, : max(width - 2 * MARGIN, 0)]
    out = np.full((5 * SCALE + 2 * MARGIN, width, 3), 255, np.uint8)
    out[MARGIN : MARGIN + bits.shape[0], MARGIN : MARGIN + bits.shape[1]][bits] = 0
    return out
