"""What was not timed is reckoned from what was: first the same student and method, then the student, then the method."""

from __future__ import annotations

import pytest

from kdbench.forecast.time import Speeds


def test_nothing_is_said_where_nothing_was_timed() -> None:
    assert Speeds().of_cohort([("mixer", "kd")], [1.0]) is None
    assert Speeds().of_teacher(1.0) is None


def test_the_same_student_and_method_count_as_they_were_timed() -> None:
    speeds = Speeds()
    speeds.learn([("mixer", "kd"), ("mixer", "ofa")], [2.0, 6.0], [1.0, 1.0], whole=12.0)
    # all that a cohort takes is 1.5 times its cells' steps
    assert speeds.of_cohort([("mixer", "ofa")], [1.0]) == pytest.approx(9.0)
    assert speeds.of_cohort([("mixer", "kd"), ("mixer", "ofa")], [1.0, 1.0]) == pytest.approx(12.0)


def test_a_method_costs_another_student_what_it_cost_one_in_relation() -> None:
    speeds = Speeds()
    speeds.learn([("vit", "kd"), ("vit", "dist"), ("vit", "ofa")], [2.0, 2.0, 6.0], [1.0, 1.0, 1.0], whole=10.0)
    speeds.learn([("cnn", "kd")], [3.0], [3.0], whole=3.0)
    ofa, kd = (speeds.of_cohort([("cnn", name)], [3.0]) for name in ("ofa", "kd"))
    assert kd == pytest.approx(3.0)
    assert ofa == pytest.approx(3.0 * 1.0 * 6.0 / 2.0)  # the student's ratio 1, the method's 6, of all 2


def test_what_is_wholly_unknown_is_taken_from_the_middle_of_all() -> None:
    speeds = Speeds()
    speeds.learn([("vit", "kd")], [5.0], [1.0], whole=5.0)
    assert speeds.of_cohort([("cnn", "crd")], [2.0]) == pytest.approx(10.0)


def test_what_took_no_time_or_has_no_parameters_teaches_nothing() -> None:
    speeds = Speeds()
    speeds.learn([("vit", "kd"), ("vit", "ofa")], [0.0, 1.0], [1.0, 0.0], whole=1.0)
    assert speeds.of_cohort([("vit", "kd")], [1.0]) is None


def test_teachers_are_reckoned_from_teachers() -> None:
    assert Speeds(teachers=[2.0, 3.0, 10.0]).of_teacher(2.0) == pytest.approx(6.0)
