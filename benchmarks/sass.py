"""Reads disassembled kernels: finds the main loop and counts its copies, multiply-adds and special functions."""

import re


def instructions(code: str) -> list[str]:
    """All instructions up to the last EXIT, after which come padding and a branch to itself."""
    lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/(.*)$", code, re.M)
    ends = [i for i, line in enumerate(lines) if re.search(r"\bEXIT\b", line)]
    return lines[: ends[-1] + 1] if ends else lines


def longest_loop(code: str) -> list[str]:
    """Instructions of the longest innermost loop, from the target of its backward branch to the branch."""
    places = {int(at, 16): line for at, line in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/(.*)$", code, re.M)}
    branches = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/.*\bBRA\b.*?\b0x([0-9a-f]+)\b", code, re.M)
    loops = {(int(to, 16), int(at, 16)) for at, to in branches if int(to, 16) < int(at, 16)}
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b for c, d in loops - {(a, b)})]
    return max(([line for at, line in places.items() if a <= at <= b] for a, b in inner), key=len, default=[])


def in_flight(loop: list[str]) -> int:
    """Groups of asynchronous copies still pending where an iteration waits; -1 where it waits for none.

    0 means no pipeline: data is requested at the end of the iteration before, and every iteration waits for memory.
    """
    waits = [int(n, 16) for line in loop for n in re.findall(r"(?<!\.)\bDEPBAR\.LE SB0, (0x[0-9a-f]+)", line)]
    return min(waits, default=-1)


def tensor_fmas(body: list[str]) -> int:
    """Multiply-adds of one warp's share of the tensor instructions; the four warps of a warpgroup share an HGMMA."""
    total = 0
    for line in body:
        if shape := re.search(r"\bHGMMA\.(?:SP\.)?(\d+)x(\d+)x(\d+)", line):
            m, n, k = (int(size) for size in shape.groups())
            total += m * n * k // 4
        elif shape := re.search(r"\bHMMA\.16(8)(16|8)\b", line):
            total += 16 * int(shape[1]) * int(shape[2])
    return total


def special(body: list[str]) -> int:
    """Instructions of the special function unit: exponentials, reciprocals, roots."""
    return sum(bool(re.search(r"\bMUFU\b", line)) for line in body)
