"""Names in the chart of retention against quality."""

from itertools import combinations

from mmkd.report.charts import beside


def test_names_of_neighbouring_points_go_to_different_sides() -> None:
    points = [(0.60, 0.0580), (0.601, 0.0581), (0.90, 0.0500)]
    first, second, far = beside(points, ["demo-fused", "demo-kdsr", "demo-id"])
    assert first != second
    assert far == 0  # nothing near it: above


def test_four_equal_points_have_their_names_at_four_sides() -> None:
    sides = beside([(0.5, 0.1)] * 4, ["a-run", "b-run", "c-run", "d-run"])
    assert all(a != b for a, b in combinations(sides, 2))


def test_one_point_has_its_name_above() -> None:
    assert beside([(0.5, 0.1)], ["run"]) == [0]
