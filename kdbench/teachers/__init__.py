"""Weights of teachers.

In reading order: ``readiness`` (what a run checks of its teachers before it trains), ``weights`` (where weights lie, and how they are
fetched), ``statedict`` (files of others, read safely), ``foreign`` (their weights, fitted to a net), ``convert`` (files that need
code, with the user's word for them), ``verification`` (a measured accuracy against the published one, and against guessing).
"""
