"""Weights of teachers.

In reading order: ``readiness`` (what a run checks of its teachers before it trains), ``weights`` (where weights lie, and how they are
fetched), ``foreign`` (files of others, read safely and fitted to a net), ``verification`` (a measured accuracy against the published
one).
"""
