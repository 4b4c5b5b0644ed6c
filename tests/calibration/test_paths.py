"""Computed steps and the stretches between them: shapes, marks, and what differs in one choice."""

import pytest

from latte_fast.calibration.paths import Stretch, dense_late, hand_made, marks_of, neighbours, stretched


@pytest.mark.parametrize("count", [8, 50, 51])
@pytest.mark.parametrize("computed", [3, 5, 8])
def test_as_many_steps_as_asked_for(count: int, computed: int) -> None:
    for exponent in (1.0, 1.5, 2.0):
        for first in (0, 1, 4, 13):
            steps = dense_late(count, computed, exponent, first)
            assert len(set(steps)) == computed and steps == sorted(steps) and {0, count - 1} <= set(steps)
    for steps in hand_made(count, computed).values():
        assert len(set(steps)) == computed and {0, count - 1} <= set(steps)


def test_dense_late_is_the_mask_by_hand() -> None:
    assert dense_late(50, 10, 1.5) == hand_made(50, 10)["late-dense"]
    assert dense_late(50, 10, 1.0) == hand_made(50, 10)["even"]
    late = dense_late(50, 10, 1.5, 12)
    assert late[:2] == [0, 12] and late[-1] - late[-2] <= 2


def test_marks() -> None:
    """Orders that too few computed steps allow are lowered; of a stretch each so many steps call the model."""
    path = {0: Stretch(2, 1), 3: Stretch(2, 2), 7: Stretch(2, 3), 12: Stretch(2, 0), 15: Stretch()}
    assert marks_of(16, path) == "C00C1-1C2--2C--C"


def test_neighbours() -> None:
    path = stretched([0, 4, 9, 13], 1, 2)
    marks = [marks_of(14, other) for other in neighbours(path, 14)]
    assert len(set(marks)) > 20 and {m.count("C") for m in marks} == {4}
    assert all(m[0] == m[-1] == "C" for m in marks)
    assert all(stretch.every == 1 for n in neighbours(stretched([0, 4, 13], 1, 1), 14, (1,)) for stretch in n.values())
