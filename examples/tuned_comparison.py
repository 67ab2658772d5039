"""Compare methods after the same amount of tuning: ``python examples/tuned_comparison.py --trials 8``.

Every method gets as many trials as the others, on images held out from training. The test images are used once, at the end, with
seeds that the search has not seen.
"""

from __future__ import annotations

import argparse
from typing import Any

import kdbench
from kdbench.api import View

METHODS = ["kd", "dist"]


def compare(trials: int, **options: Any) -> View:
    """Search, train with what was best, and return the leaderboard.

    Args:
        trials: of each method; the first has the method's own values.
        options: of all verbs, such as ``protocol`` or ``limit``.
    """
    search = kdbench.tune("digits", methods=METHODS, trials=trials, out="tuning", to="best.yaml", **options)
    print(search)
    chosen: dict[str, Any] = {
        "methods": ["scratch", *METHODS],
        "seeds": [1, 2, 3],
        "settings": "best.yaml",
        "out": "tuned",
        **options,
    }
    ran = kdbench.run("digits", **chosen)
    print(len(ran.done), "cells done,", len(ran.failed), "failed")
    return kdbench.leaderboard("digits", **chosen)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--protocol", default="short")
    parser.add_argument("--pairs", help="some of the protocol's, as TEACHER--STUDENT,...")
    parser.add_argument("--limit", type=int, help="images of each split, to try it quickly")
    print(compare(**vars(parser.parse_args())))
