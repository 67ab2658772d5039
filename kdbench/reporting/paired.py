"""Within one pair: how sure a figure is over seeds, and whether two methods differ on the same test images.

One interval answers what a reader asks, another seed and other images at once (``over_seeds_and_images``). Three narrower questions
are often mixed up with it, each with its own answer here:

- *Another seed?* Student's t over the differences of seeds that both methods have.
- *Other test images?* The paired bootstrap (``bootstrap_difference``): these networks, other images of the same kind.
- *More than chance on these images?* McNemar's test, over several seeds ``sign_test_over_images``.

The last two say nothing about another seed: they hold for the trained networks at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdbench.reporting.frame import Results
from kdbench.reporting.statistics import t_interval
from kdbench.store.reading import Outcomes

RESAMPLES = 10_000
BOOTSTRAP_SEED = 20_150_309
#: Quantile of the normal distribution at 0.975.
NORMAL = 1.959964


@dataclass(frozen=True)
class Comparison:
    """Two methods on one pair, from predictions on the same images. Differences are first minus second, in points.

    Attributes:
        seeds: of which both methods have predictions.
        difference: of the accuracies, mean over those seeds.
        over_both: ``over_seeds_and_images``; NaN with fewer than two seeds.
        over_images: percentile interval of the paired bootstrap over images.
        over_seeds: Student's t interval of the per-seed differences; NaN with fewer than two seeds.
        only_first, only_second: images that only this one has right, mean over those seeds.
        p: ``sign_test_over_images``; with one seed it is McNemar's.
        notes: what must be said beside the figures.
    """

    pair: str
    first: str
    seeds: tuple[int, ...]
    difference: float
    over_both: tuple[float, float]
    over_images: tuple[float, float]
    over_seeds: tuple[float, float]
    only_first: float
    only_second: float
    p: float
    notes: tuple[str, ...]


def seeds_note(count: int) -> str:
    """What must be said of fewer than three seeds."""
    if count == 1:
        return "One seed: nothing is known of the spread between seeds."
    if count == 2:
        return "Two seeds: the t interval has one degree of freedom and reaches 12.7 standard errors either way."
    return ""


def sign_test_over_images(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided exact p that an image is as likely to favour the first method as the second, over all seeds together.

    An image favours the method that has it right in more seeds; images without a favourite are dropped, as McNemar drops
    them. The image is the unit: the same image in three seeds is not three independent trials, which is what adding up
    three McNemar tables would assume. With one seed this is McNemar's test, the binomial of the images on which they differ.

    Args:
        first, second: (seeds, N) bool, right or wrong on the same images in the same order.

    Raises:
        ValueError: for different shapes.
    """
    favour = _favour(first, second)
    fewer, more = sorted((int((favour > 0).sum()), int((favour < 0).sum())))
    if fewer == more:  # also when there is none of either
        return 1.0
    from scipy.special import bdtr

    return float(2 * bdtr(fewer, fewer + more, 0.5))


def bootstrap_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Accuracy of the first minus that of the second, and its 95 % percentile interval when images are drawn again.

    Images are drawn with replacement, each with its outcomes in both methods and all seeds together (Efron and
    Tibshirani 1993, ch. 13). The same draws are made each time: the generator's seed is fixed.

    Args:
        first, second: (seeds, N) bool.

    Returns:
        Difference, lower and upper limit, in points.

    Raises:
        ValueError: for different shapes.
    """
    per_image = _favour(first, second)
    # An image matters only by its difference, of which there are few values: drawing how often each value occurs is the
    # same as drawing images, and quick for 50,000 of them.
    values, counts = np.unique(per_image, return_counts=True)
    scale = 100 / first.size
    draws = np.random.default_rng(BOOTSTRAP_SEED).multinomial(per_image.size, counts / counts.sum(), size=RESAMPLES)
    low, high = np.percentile(draws @ values * scale, [2.5, 97.5])
    return float(per_image.sum() * scale), float(low), float(high)


def over_seeds_and_images(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """95 % interval of the difference of accuracies, were seeds and test images drawn again.

    The variance of the difference has two parts: s^2 / n of its n values by seed, which holds what images do in one seed alone, and
    max(0, MS_images - MS_residual) / (n N) of the two-way analysis of variance, what images do in all seeds alike. The quantile is the
    mean of Student's t with n - 1 degrees of freedom and of the normal one, weighted by these variances (Cochran and Cox 1950,
    section 4.14). Where images do the same in all seeds this is the normal interval over images; where they share nothing it is
    ``t_interval`` over seeds. ``python -m benchmarks.inference`` measures what it covers.

    Args:
        first, second: (seeds, N) bool.

    Returns:
        Limits in points; NaN twice with fewer than two seeds or images.

    Raises:
        ValueError: for different shapes.
    """
    from scipy.special import stdtrit

    difference = _favour(first, second).sum() * 100 / first.size
    seeds, images = first.shape
    if min(seeds, images) < 2:
        return np.nan, np.nan
    apart = 100.0 * (first.astype(np.int8) - second.astype(np.int8))
    by_seed, by_image = apart.mean(axis=1), apart.mean(axis=0)
    residual = apart - by_image - by_seed[:, None] + difference
    of_residual = (residual**2).sum() / ((seeds - 1) * (images - 1))
    of_seeds = by_seed.var(ddof=1) / seeds
    of_images = max(0.0, seeds * by_image.var(ddof=1) - of_residual) / apart.size
    variance = of_seeds + of_images
    if not variance:
        return float(difference), float(difference)
    quantile = (of_seeds * stdtrit(seeds - 1, 0.975) + of_images * NORMAL) / variance
    half = quantile * np.sqrt(variance)
    return float(difference - half), float(difference + half)


def compare_methods(results: Results, outcomes: Outcomes, pair: str, first: str, second: str) -> Comparison | None:
    """Compare two methods on one pair from stored predictions, over the seeds that both have; None where there is none.

    Seeds are matched, because a seed's cells share initial weights and batches: seed 0 of the first method is compared
    with seed 0 of the second. None too where the predictions are of different numbers of images.
    """
    found: list[dict[int, np.ndarray]] = []
    for name in (first, second):
        read = {seed: outcomes.correct(path) for seed, path in results.paths.get((pair, name), {}).items()}
        found.append({seed: right for seed, right in read.items() if right is not None})
    seeds = sorted(set(found[0]) & set(found[1]))
    if not seeds or len({own[seed].size for own in found for seed in seeds}) > 1:
        return None
    a, b = (np.stack([own[seed] for seed in seeds]) for own in found)
    difference, low, high = bootstrap_difference(a, b)
    alone = sorted(set(found[0]) ^ set(found[1]))
    left_out = f"Seeds that only one of the two has are left out: {', '.join(map(str, alone))}." if alone else ""
    return Comparison(
        pair=pair,
        first=first,
        seeds=tuple(seeds),
        difference=difference,
        over_both=over_seeds_and_images(a, b),
        over_images=(low, high),
        over_seeds=t_interval((a.mean(axis=1) - b.mean(axis=1)) * 100),
        only_first=float((a & ~b).sum(axis=1).mean()),
        only_second=float((~a & b).sum(axis=1).mean()),
        p=sign_test_over_images(a, b),
        notes=tuple(note for note in (seeds_note(len(seeds)), left_out) if note),
    )


def comparable(results: Results, reference: str) -> list[tuple[str, str]]:
    """(pair, method) for every method that has figures where ``reference`` has some too, in the order of the table."""
    scores = results.score_info
    return [
        (pair, name)
        for pair in results.pair_info
        if scores.get((pair, reference), {}).get("n", 0)
        for name in results.method_info
        if name != reference and scores.get((pair, name), {}).get("n", 0)
    ]


def _favour(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,): in how many seeds more the first has an image right."""
    if first.shape != second.shape or not first.size:
        raise ValueError(
            f"expected two arrays of one shape with at least one image, got {first.shape} and {second.shape}"
        )
    return np.asarray(first.sum(axis=0).astype(int) - second.sum(axis=0))
