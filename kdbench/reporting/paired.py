"""Within one pair: how sure a figure is over seeds, and whether two methods differ on the same test images.

Three questions that are often mixed up, each with its own answer here:

- *Another seed?* Student's t over seeds (``seed_interval``; for a difference, over seeds that both methods have).
- *Other test images?* The paired bootstrap (``bootstrap_difference``): these networks, other images of the same kind.
- *More than chance on these images?* McNemar's test (``mcnemar``; over several seeds ``sign_test_over_images``).

The last two say nothing about another seed: they hold for the trained networks at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.reporting.frame import Results
from kdbench.reporting.statistics import Interval, mean_interval
from kdbench.store.reading import Outcomes

RESAMPLES = 10_000
BOOTSTRAP_SEED = 20_150_309
LEVEL = 0.95


@dataclass(frozen=True)
class McNemar:
    """McNemar's test. ``only_first``: images that only the first has right; ``p``: two-sided, exact."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two methods on one pair, from predictions on the same images. Differences are first minus second, in points.

    Attributes:
        images: number of images in the evaluated split.
        seeds: seeds of which both methods have predictions.
        difference: of the accuracies, mean over those seeds.
        images_low, images_high: percentile interval of the paired bootstrap over images.
        over_seeds: Student's t interval of the per-seed differences; limits are NaN with fewer than two seeds.
        per_seed: McNemar's test of each seed, in the order of ``seeds``.
        p: over all seeds, ``sign_test_over_images``; with one seed it is McNemar's.
        notes: what must be said beside the figures.
    """

    pair: str
    first: str
    second: str
    images: int
    seeds: tuple[int, ...]
    difference: float
    images_low: float
    images_high: float
    over_seeds: Interval
    per_seed: tuple[McNemar, ...]
    p: float
    notes: tuple[str, ...]


def seed_interval(values: Sequence[float], level: float = LEVEL) -> tuple[Interval, str]:
    """Student's t interval over seeds, and what must be said of it, empty when there are three seeds or more.

    Raises:
        ValueError: for a value that is not finite.
    """
    return mean_interval(values, level), seeds_note(len(values))


def seeds_note(count: int) -> str:
    """What must be said of fewer than three seeds."""
    if count == 0:
        return "No seed."
    if count == 1:
        return "One seed: nothing is known of the spread between seeds."
    if count == 2:
        return "Two seeds: the t interval has one degree of freedom and reaches 12.7 standard errors either way."
    return ""


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's test that two classifiers are right equally often, exact: the binomial of the images on which they differ.

    Args:
        first, second: (N,) bool, right or wrong on the same images in the same order.

    Raises:
        ValueError: for different shapes.
    """
    a, b = _bools(first, second)
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    return McNemar(only_first, only_second, _binomial_p(only_first, only_second))


def sign_test_over_images(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided exact p that an image is as likely to favour the first method as the second, over all seeds together.

    An image favours the method that has it right in more seeds; images without a favourite are dropped, as McNemar drops
    them. The image is the unit: the same image in three seeds is not three independent trials, which is what adding up
    three McNemar tables would assume. With one seed this is McNemar's test.

    Args:
        first, second: (seeds, N) bool.
    """
    a, b = _bools(first, second)
    favour = a.sum(axis=0).astype(int) - b.sum(axis=0)
    return _binomial_p(int((favour > 0).sum()), int((favour < 0).sum()))


def bootstrap_difference(
    first: np.ndarray, second: np.ndarray, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = BOOTSTRAP_SEED
) -> tuple[float, float, float]:
    """Accuracy of the first minus that of the second, and its percentile interval when images are drawn again.

    Images are drawn with replacement, each with its outcomes in both methods and all seeds together (Efron and
    Tibshirani 1993, ch. 13). The same draws are made each time: the generator's seed is fixed.

    Args:
        first, second: (N,) or (seeds, N) bool.

    Returns:
        Difference, lower and upper limit, in points.

    Raises:
        ValueError: for different shapes.
    """
    a, b = (np.atleast_2d(x) for x in _bools(first, second))
    per_image = a.sum(axis=0).astype(int) - b.sum(axis=0)
    # An image matters only by its difference, of which there are few values: drawing how often each value occurs is the
    # same as drawing images, and quick for 50,000 of them.
    values, counts = np.unique(per_image, return_counts=True)
    scale = 100 / (a.shape[0] * a.shape[1])
    draws = np.random.default_rng(seed).multinomial(a.shape[1], counts / counts.sum(), size=resamples)
    differences = draws @ values * scale
    low, high = np.percentile(differences, [50 - 50 * level, 50 + 50 * level])
    return float(per_image.sum() * scale), float(low), float(high)


def compare_methods(results: Results, store: Path | str | Outcomes, pair: str, first: str, second: str) -> Comparison:
    """Compare two methods on one pair from stored predictions, over the seeds that both have.

    Seeds are matched, because a seed's cells share initial weights and batches: seed 0 of the first method is compared
    with seed 0 of the second. ``store`` is the run directory, or what was read from it already.

    Raises:
        UnknownNameError: for an unknown pair or method.
        KdbenchError: if there is no seed of which both have predictions, or they are of different images.
    """
    if pair not in results.pair_info:
        raise UnknownNameError("pair", pair, results.pair_info, "the results")
    for name in (first, second):
        if name not in results.method_info:
            raise UnknownNameError("method", name, results.method_info, "the results")
    outcomes = store if isinstance(store, Outcomes) else Outcomes(store)
    return _compare(_finished(results), outcomes, pair, first, second)


def _finished(results: Results) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """(pair, method) -> (seed, path) of its finished cells."""
    done = results.cells[results.cells["state"] == "done"]
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for pair, method, seed, path in zip(*(done[name] for name in ("pair", "method", "seed", "path")), strict=True):
        found.setdefault((str(pair), str(method)), []).append((int(seed), str(path)))
    return found


def _compare(
    finished: dict[tuple[str, str], list[tuple[int, str]]], outcomes: Outcomes, pair: str, first: str, second: str
) -> Comparison:
    found: dict[str, dict[int, np.ndarray]] = {first: {}, second: {}}
    for name, own in found.items():
        for seed, path in finished.get((pair, name), []):
            right = outcomes.correct(path)
            if right is not None:
                own[seed] = right
    seeds = sorted(set(found[first]) & set(found[second]))
    if not seeds:
        raise KdbenchError(f"{first} and {second} on {pair}: no seed of which both have predictions")
    sizes = {outcome.size for name in found for seed, outcome in found[name].items() if seed in seeds}
    if len(sizes) > 1:
        raise KdbenchError(
            f"{first} and {second} on {pair}: predictions of different numbers of images "
            f"({', '.join(map(str, sorted(sizes)))}) cannot be compared image by image"
        )
    a, b = (np.stack([found[name][seed] for seed in seeds]) for name in (first, second))
    difference, low, high = bootstrap_difference(a, b)
    over_seeds, note = seed_interval((a.mean(axis=1) - b.mean(axis=1)) * 100)
    alone = sorted((set(found[first]) | set(found[second])) - set(seeds))
    notes = [note] if note else []
    if alone:
        notes.append(f"Seeds that only one of the two has are left out: {', '.join(map(str, alone))}.")
    return Comparison(
        pair=pair,
        first=first,
        second=second,
        images=a.shape[1],
        seeds=tuple(seeds),
        difference=difference,
        images_low=low,
        images_high=high,
        over_seeds=over_seeds,
        per_seed=tuple(mcnemar(x, y) for x, y in zip(a, b, strict=True)),
        p=sign_test_over_images(a, b),
        notes=tuple(notes),
    )


def compare_all(results: Results, store: Path | str | Outcomes, reference: str = "kd") -> list[Comparison]:
    """Every method against ``reference`` on every pair where both have predictions, in the order of the table."""
    outcomes = store if isinstance(store, Outcomes) else Outcomes(store)
    return compare_some(results, outcomes, reference, comparable(results, reference))


def compare_some(
    results: Results, outcomes: Outcomes, reference: str, wanted: Sequence[tuple[str, str]]
) -> list[Comparison]:
    """The same for these (pair, method)."""
    comparisons = []
    finished = _finished(results)
    for pair, name in wanted:
        try:
            comparisons.append(_compare(finished, outcomes, pair, name, reference))
        except KdbenchError:  # no predictions in common: nothing to say of this one
            continue
    return comparisons


def comparable(results: Results, reference: str) -> list[tuple[str, str]]:
    """(pair, method) for every method that has figures where ``reference`` has some too."""
    scores = results.score_info
    return [
        (pair, name)
        for pair in results.pair_info
        if scores.get((pair, reference), {}).get("n", 0)
        for name in results.method_info
        if name != reference and scores.get((pair, name), {}).get("n", 0)
    ]


def _bools(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"expected two arrays of one shape with at least one image, got {a.shape} and {b.shape}")
    return a, b


def _binomial_p(successes: int, failures: int) -> float:
    if successes == failures:  # also when there is none of either
        return 1.0
    from scipy.special import bdtr

    return float(2 * bdtr(min(successes, failures), successes + failures, 0.5))
