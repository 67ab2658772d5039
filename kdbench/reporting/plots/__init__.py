"""Plots of one suite and protocol.

In reading order: ``draw`` (all plots, each with its caption), ``style`` (sizes, fonts, colours), ``picture`` (the leaderboard),
``matrix`` (gains, ranks), ``scatter`` (gain against cost), ``stored`` (learning curves, reliability), ``runs`` (performance
profiles), ``teacher`` (gain against the teacher's accuracy).
"""
