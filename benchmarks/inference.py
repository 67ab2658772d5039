"""What the intervals and tests of a leaderboard cover, on the pair structures of the suites.

    python -m benchmarks.inference [--draws N] [--to FILE]

Gains over KD are drawn as mean + effect of the teacher + of the student + of the pair + noise of the seeds, of which KD's own is
shared by all methods; standard deviations are in points (``SPREADS``), and the effects are there or not (``WORLDS``). All methods are
as good as KD but for the last, whose mean is ``GAIN``. Of what a leaderboard prints, and of what it might, it is counted how often
it is right. The intervals of one pair are tried on right and wrong predictions of single images (``within_pair``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from scipy.special import ndtr, stdtrit

from kdbench.reporting.paired import over_seeds_and_images
from kdbench.reporting.power import SPREADS
from kdbench.reporting.statistics import ALPHA, LEAST_NETS, crossed_mean, holm, signed_rank, t_interval
from kdbench.suite.suite import load_suite, split_pair

SUITES = ("cifar100", "imagenet1k", "cifar100-32", "cifar100-classic", "digits", "cifar100-tiny")
#: Effects of (teachers, students).
WORLDS = {"no effects": (0.0, 0.0), "students": (0.0, 1.0), "students and teachers": (1.0, 1.0)}
METHODS, SEEDS, GAIN = 12, 3, 0.5
#: Levels at which the band of a performance profile is tried.
LEVELS = np.array([-0.5, 0.0, 0.5])
#: Within a pair: standard deviation of a seed's probability to be right, and how far half of the images favour one of the methods.
PREDICTIONS = {"seeds": (0.02, 0.0), "images": (0.0, 0.8), "seeds and images": (0.02, 0.8)}
IMAGES = 1000


def profile_band(
    gains: Sequence[np.ndarray], levels: np.ndarray, teachers: Sequence[str], students: Sequence[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Pointwise 95 % limits of the profile, were teachers, students and pairs drawn anew: ``crossed_mean`` at each level.

    The limits are symmetric on the scale of arcsin sqrt(share), on which the variance of a share does not depend on the share (Bartlett
    1947): on the share's own scale they cover too little near 0 and 1. Where all pairs have the same share they count as independent.
    rliable draws runs within each task and keeps the tasks; of three seeds that says little, and nothing of other pairs.
    It covers too little, so that no plot shows it.

    Args:
        teachers, students: of each pair.

    Returns:
        None with fewer than ``LEAST_NETS`` teachers or students.
    """
    if min(len({*teachers}), len({*students})) < LEAST_NETS:
        return None
    limits = []
    for shares in np.stack([(pair[:, None] > levels).mean(axis=0) for pair in gains]).T:
        share, mean = shares.mean(), crossed_mean(shares, teachers, students)
        size, freedom = (share * (1 - share) / mean.variance, mean.freedom) if mean else (shares.size, shares.size - 1)
        middle, half = np.arcsin(np.sqrt(share)), stdtrit(freedom, 0.975) / (2 * np.sqrt(size))
        limits.append(np.sin(np.clip([middle - half, middle + half], 0, np.pi / 2)) ** 2)
    low, high = np.transpose(limits)
    return low, high


def main(arguments: Sequence[str] | None = None) -> int:
    arguing = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguing.add_argument("--draws", type=int, default=400, help="stores to draw for each suite and world")
    arguing.add_argument("--to", type=Path, help="write the result there, as JSON")
    options = arguing.parse_args(arguments)
    stores = {
        f"{suite}, {world}": ([split_pair(pair) for pair in load_suite(suite).pairs], WORLDS[world], options.draws)
        for suite in SUITES
        for world in WORLDS
    }
    runs = {
        f"{seeds} seeds, chance of {world}": (seeds, *PREDICTIONS[world], 5 * options.draws)
        for world in PREDICTIONS
        for seeds in (2, 3, 5)
    }
    with ProcessPoolExecutor(2) as pool:
        found, within = (
            {name: pool.submit(function, *each) for name, each in asked.items()}
            for function, asked in ((study, stores), (within_pair, runs))
        )
        for name, row in (found | within).items():
            print(f"{name:40s}", *(f"{key} {value:.3f}" for key, value in row.result().items()), flush=True)
    if options.to:
        tables = {
            title: {name: row.result() for name, row in rows.items()}
            for title, rows in (("rows", found), ("within a pair", within))
        }
        about = {"draws": options.draws, "methods": METHODS, "seeds": SEEDS, "gain": GAIN, "spreads": SPREADS}
        options.to.write_text(json.dumps({**about, **tables}, indent=1, allow_nan=False) + "\n")
    return 0


def study(
    pairs: Sequence[tuple[str, str]], effects: tuple[float, float], draws: int, methods: int = METHODS
) -> dict[str, float]:
    """Shares of right statements over ``draws`` stores of ``methods`` methods.

    Returns:
        ``t``, ``crossed``: coverage of the 95 % intervals; ``crossed, all``: stores in which all methods' limits hold at once;
        ``profile``: coverage of the band of performance profiles at each of ``LEVELS``;
        ``p``, ``any p``: false positives of one test, and stores with one after Holm's correction; ``Wilcoxon``, ``any Wilcoxon``: the
        same of the signed-rank test; ``found``: how often the better method's interval excludes zero. What there is not for a suite
        is left out.
    """
    rng = np.random.default_rng(2_017)
    teachers, students = zip(*pairs, strict=True)
    codes = [np.unique(names, return_inverse=True)[1] for names in (teachers, students)]
    counts: dict[str, list[float]] = {}

    def count(name: str, right: bool) -> None:
        counts.setdefault(name, []).append(right)

    sd = np.sqrt(
        SPREADS["pair"] ** 2 + 2 * SPREADS["seed"] ** 2 + sum(effects) * SPREADS["net"] ** 2
    )  # of a run's gain
    for _ in range(draws):
        of_interval, of_ranks, held = [], [], []
        for i, runs in enumerate(_draw(rng, codes, effects, methods)):
            values = runs.mean(axis=1)
            low, high = t_interval(values)
            true = GAIN if i == methods - 1 else 0.0
            count("t", low <= true <= high)
            if (crossed := crossed_mean(values, teachers, students)) is not None:
                low, high = crossed.interval()
                count("crossed", low <= true <= high)
                if true:
                    count("found", low > 0)
                low, high = crossed.interval(1 - ALPHA / methods)
                held.append(low <= true <= high)
                if i in (0, methods - 1):
                    for share, limits in zip(ndtr((true - LEVELS) / sd), _band(runs, teachers, students), strict=True):
                        count("profile", limits[0] <= share <= limits[1])
                if not true:
                    of_interval.append(crossed.p)
                    count("p", crossed.p <= ALPHA)
            if not true:
                of_ranks.append(signed_rank(values)[0])
                count("Wilcoxon", of_ranks[-1] <= ALPHA)
        count("any Wilcoxon", min(holm(of_ranks)) <= ALPHA)
        if of_interval:
            count("any p", min(holm(of_interval)) <= ALPHA)
        if len(held) == methods:
            count("crossed, all", all(held))
    return {name: round(float(np.mean(values)), 4) for name, values in counts.items()}


def _band(runs: np.ndarray, teachers: Sequence[str], students: Sequence[str]) -> np.ndarray:
    """(levels, 2): the band of a performance profile."""
    band = profile_band(runs, LEVELS, teachers, students)
    assert band is not None
    return np.stack(band, axis=1)


def within_pair(seeds: int, seed_sd: float, image_effect: float, draws: int) -> dict[str, float]:
    """Coverage of the intervals of one pair, each of what it is for.

    The first method is right with probability 0.5 + image / 2 + seed, the second with 0.5 - image / 2 + seed: an image favours the first
    by ``image_effect`` with probability 0.27, the second with 0.23.

    Returns:
        ``seeds and images``: of the mean over both; ``seeds``: Student's t, of the mean over seeds on the images at hand.
    """
    rng = np.random.default_rng(1_950)
    shares = [0.27, 0.5, 0.23]
    true = image_effect * (shares[0] - shares[2]) * 100
    held = []
    for _ in range(draws):
        images = rng.choice([image_effect, 0.0, -image_effect], IMAGES, p=shares)
        of_seeds = rng.normal(0, seed_sd, (2, seeds, 1))
        first, second = (
            rng.random((seeds, IMAGES)) < 0.5 + sign * images / 2 + of_seeds[i] for i, sign in enumerate((1, -1))
        )
        apart = 100 * (first.mean(axis=1) - second.mean(axis=1))
        asked = {
            "seeds and images": (over_seeds_and_images(first, second), true),
            "seeds": (t_interval(apart), 100 * float(images.mean())),
        }
        held.append({name: low <= value <= high for name, ((low, high), value) in asked.items()})
    return {name: round(float(np.mean([row[name] for row in held])), 4) for name in held[0]}


def _draw(
    rng: np.random.Generator, codes: Sequence[np.ndarray], effects: tuple[float, float], methods: int
) -> np.ndarray:
    """(methods, pairs, seeds) of gains."""
    size = (methods, codes[0].size, SEEDS)
    gains = (
        rng.normal(0, SPREADS["pair"], (*size[:2], 1))
        + rng.normal(0, SPREADS["seed"], size)
        - rng.normal(0, SPREADS["seed"], size[1:])
    )
    for code, present in zip(codes, effects, strict=True):
        gains += rng.normal(0, 1, (methods, code.max() + 1, 1))[:, code] * SPREADS["net"] * present
    gains[-1] += GAIN
    return gains


if __name__ == "__main__":
    sys.exit(main())
