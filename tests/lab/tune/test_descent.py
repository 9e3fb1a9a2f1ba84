"""The descent on functions whose highest point is known, the rule and the coordinates by hand."""

import itertools

import numpy as np
import pytest

from lab.tune import descent
from lab.tune.descent import descend, gain, is_better, values

DAVIDNET = {"learning_rate": 0.4, "momentum": 0.9, "weight_decay": 5e-4}


def hill(top, matrix=None):
    """Minus a quadratic in the exponents, highest at `top`; and the points that were asked for."""
    asked = []
    matrix = np.eye(len(top)) if matrix is None else np.array(matrix)

    def height(point):
        asked.append(point)
        away = np.subtract(point, top)
        return [-float(away @ matrix @ away)] * 2

    return height, asked


def best(visits):
    return [visit for visit in visits if visit.better][-1].point


@pytest.mark.parametrize("top", [(0.0, 0.0, 0.0), (-2.0, 1.0, 3.0), (5.0, -4.0, 0.0)])
def test_the_descent_ends_on_the_top_by_doubling_and_halving(top):
    height, asked = hill(top)
    assert best(descend(height, 3)) == top
    # The start, the way, both sides of each coordinate, and of two once more since the third has moved.
    assert len(set(asked)) <= 1 + sum(map(abs, top)) + 3 * 2 + 2 * 2


def test_finer_steps_end_where_factors_of_two_do_not():
    ends = [best(descend(hill((-1.4, 0.8))[0], 2, finer)) for finer in (0, 1, 2)]
    assert ends == [(-1, 1), (-1.5, 1), (-1.5, 0.75)]


def test_a_slanted_valley_is_descended_until_no_neighbour_is_better():
    matrix = [[1, 0.7], [0.7, 1]]
    height, _ = hill((-3.0, 4.0), matrix)
    point = best(descend(height, 2))
    around = [np.add(point, step) for step in itertools.product((-1, 0, 1), repeat=2) if 0 in step]
    assert max(height(other)[0] for other in around) == height(point)[0]
    assert np.abs(np.subtract(point, (-3, 4))).max() <= 1


def test_noise_does_not_lead_astray():
    """One run's deviation is 0.3, and the next point to the top is lower by 1."""
    ends = []
    for stream in range(40):
        generator = np.random.default_rng(stream)
        known = {}

        def height(point, generator=generator, known=known):
            away = np.subtract(point, (-2, 2, 1))
            return known.setdefault(point, -float(away @ away) + 0.3 * generator.standard_normal(3))

        ends.append(best(descend(height, 3)))
    away = np.abs(np.subtract(ends, (-2, 2, 1)))
    assert away.max() <= 1 and np.mean(away.any(1)) < 0.2


def test_what_is_the_same_everywhere_is_left_as_it_is():
    noise = np.random.default_rng(0).standard_normal(3)  # of the seeds, at every point the same
    visits = list(descend(lambda point: noise, 2))
    assert [visit.point for visit in visits] == [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
    assert best(visits) == (0, 0)


def test_diverged_points_are_walls_and_a_diverged_start_is_left():
    climbing = list(descend(lambda point: None if point[0] > 1 else [point[0]], 1))
    assert best(climbing) == (1.0,) and climbing[-1].scores is None
    assert best(descend(lambda point: [-abs(point[0])] if point[0] < 0 else None, 1)) == (-1.0,)


def test_the_gain_and_its_error_by_hand():
    assert gain([2, 4, 6], [1, 2, 3]) == pytest.approx((2, 1 / 3**0.5))  # 1, 2, 3: their deviation is 1
    assert gain([0.5], [0.25]) == (0.25, 0)


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ([2, 4, 6], [1, 2, 3], True),  # 2 above 0.58
        ([3, -1, -1], [0, 0, 0], False),  # 0.33 not above 1.33
        ([1, 1], [1, 1], False),
        ([2], [1], True),
        ([1], [2], False),
        (None, [1], False),
        ([1], None, True),
        (None, None, False),
    ],
)
def test_better_is_a_gain_above_its_error(new, old, expected):
    assert is_better(new, old) is expected


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((0, 0, 0), (0.4, 0.9, 5e-4)),
        ((1, 0, 0), (0.8, 0.9, 5e-4)),
        ((0, 1, 0), (0.8, 0.8, 5e-4)),  # 0.8 5e-4 / 0.2 is 2e-3, as 0.4 5e-4 / 0.1
        ((0, 0, -1), (0.8, 0.9, 2.5e-4)),
        ((0, -2, 0), (0.1, 0.975, 5e-4)),
        ((-2, 2, 2), (0.1, 0.6, 2e-3)),  # a quarter of 2e-3
    ],
)
def test_pages_coordinates_by_hand(point, expected):
    found = values(DAVIDNET, descent.PAGES, point)
    assert tuple(found[name] for name in descent.PAGES) == expected
    step = found["learning_rate"] * found["weight_decay"] / (1 - found["momentum"])
    assert step == pytest.approx(2e-3 * 2 ** point[0])


def test_only_momentum_and_decay_take_the_rate_along():
    start = {**DAVIDNET, "cutout": 8, "label_smoothing": 0.2}
    assert values(start, ["momentum"], (1,)) == {"momentum": 0.8, "learning_rate": 0.8}
    assert values(start, ["momentum"], (1,), follows=False) == {"momentum": 0.8}
    assert values(start, ["cutout", "label_smoothing"], (0.5, -1)) == {"cutout": 11, "label_smoothing": 0.1}
