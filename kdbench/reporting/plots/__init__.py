"""Plots: ``draw`` (all of them, with their captions), ``style`` (how they look), ``matrix`` (heat map, gains, ranks), ``scatter``
(gain against cost, accuracy against agreement), ``teacher`` (gain against the teacher's accuracy), ``stored`` (learning curves,
calibration), ``picture`` (a leaderboard).
"""
