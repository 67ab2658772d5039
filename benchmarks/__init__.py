"""Benchmarks of kdbench's own speed, run from a clone: ``python -m benchmarks.NAME [--to FILE]``. ``common.py`` is what they share.

Each compares two ways to do the same, side by side in one run, and reports the ratio of their times: a machine that is slow,
or busy, is so for both.
"""
