"""Which points of the space are tried, decided by the sampler, the seed and, for TPE, the objectives of earlier trials.

- `random`: points of a quasi-random sequence that begins where the seed says, without repeats. It leaves fewer and
  smaller gaps than chance does. The first n of a longer search with the same seed are the same points.
- `grid`: all of them, in order.
- `tpe`: Optuna's tree-structured Parzen estimator, asked for `TPE_BATCH` trials at a time: a constant, so that the
  trials do not depend on how many are evaluated at once. It may ask for a point again.

Random and grid searches use neither Optuna nor any of its time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final, Literal, Protocol

import numpy as np

from lake_pipeline.optimizer.space import Point, SearchSpace

__all__ = ["DEFAULT_TRIALS", "MOST_TRIALS", "SAMPLERS", "TPE_BATCH", "Sampler", "SamplerName", "make_sampler"]

SamplerName = Literal["random", "grid", "tpe"]
SAMPLERS: Final[tuple[SamplerName, ...]] = ("random", "grid", "tpe")
DEFAULT_TRIALS: Final = 100
MOST_TRIALS: Final = 1_000_000
TPE_BATCH: Final = 10
_SHUFFLED: Final = 1_000_000
_ROUNDS: Final = 60


class Sampler(Protocol):
    """Gives points in order, and learns what became of them before it is asked again."""

    @property
    def batch(self) -> int | None:
        """How many points at a time, None for any number."""

    @property
    def trials(self) -> int:
        """How many points there are."""

    def ask(self, count: int) -> list[Point]:
        """The next `count` points."""

    def tell(self, objectives: Sequence[float | None]) -> None:
        """The objectives of the points asked for last, None where there is none."""


def make_sampler(name: SamplerName, space: SearchSpace, trials: int | None, seed: int) -> Sampler:
    """The sampler of this name; `trials` is None for a grid and at most the space's size for the random one."""
    if trials is None:
        return _Listed(space, range(space.size))
    if name == "random":
        return _Listed(space, _spread(space, trials, seed))
    return _Tpe(space, trials, seed)


def _spread(space: SearchSpace, count: int, seed: int) -> list[int]:
    """`count` different places; a larger count only adds to them.

    The additive recurrence of the generalised golden ratio, the root of x^(d + 1) = x + 1 for d dimensions (Roberts,
    2018, The Unreasonable Effectiveness of Quasirandom Sequences), shifted by the seed. A point that is there already
    gives way to one drawn by chance, so that small spaces are used up too.
    """
    sizes = [len(dimension.values) for dimension in space.dimensions]
    if not sizes:
        return [0]
    ratio = 2.0
    for _ in range(_ROUNDS):
        ratio = (ratio + 1) ** (1 / (len(sizes) + 1))
    generator = np.random.Generator(np.random.PCG64(seed))
    steps = np.cumprod(np.full(len(sizes), 1 / ratio))
    shares = (generator.random(len(sizes)) + np.arange(count)[:, None] * steps) % 1
    positions = np.minimum((shares * sizes).astype(np.int64), np.array(sizes) - 1)
    others = _by_chance(space.size, generator)
    taken: dict[int, None] = {}
    for place in np.ravel_multi_index(tuple(positions.T), sizes).tolist():
        taken[next(each for each in itertools.chain((place,), others) if each not in taken)] = None
    return list(taken)


def _by_chance(size: int, generator: np.random.Generator) -> Iterator[int]:
    """Places in random order; of a large space with repeats, which are few, and without end."""
    if size <= _SHUFFLED:
        yield from generator.permutation(size).tolist()
        return
    while True:
        yield int(generator.integers(size))


class _Listed:
    """Points that are known beforehand."""

    batch: int | None = None

    def __init__(self, space: SearchSpace, places: Sequence[int]) -> None:
        self._space = space
        self._places = places
        self._asked = 0
        self.trials = len(places)

    def ask(self, count: int) -> list[Point]:
        places = self._places[self._asked : self._asked + count]
        self._asked += len(places)
        return [self._space.point(place) for place in places]

    def tell(self, objectives: Sequence[float | None]) -> None:
        """Nothing follows from them."""


class _Tpe:
    """Optuna's TPE over positions: steps count, not distances, so any range may be mixed with any other."""

    batch: int | None = TPE_BATCH

    def __init__(self, space: SearchSpace, trials: int, seed: int) -> None:
        # Half a second of imports, for those who ask for it.
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        self._failed = optuna.trial.TrialState.FAIL
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            dimension.name: optuna.distributions.CategoricalDistribution(range(len(dimension.values)))
            if dimension.name == "tiers"
            else optuna.distributions.IntDistribution(0, len(dimension.values) - 1)
            for dimension in space.dimensions
        }
        self._names = [dimension.name for dimension in space.dimensions]
        self._waiting: list[optuna.trial.Trial] = []
        self.trials = trials

    def ask(self, count: int) -> list[Point]:
        self._waiting = [self._study.ask(self._distributions) for _ in range(count)]
        return [tuple(int(trial.params[name]) for name in self._names) for trial in self._waiting]

    def tell(self, objectives: Sequence[float | None]) -> None:
        for trial, objective in zip(self._waiting, objectives, strict=True):
            if objective is None:
                self._study.tell(trial, state=self._failed)
            else:
                self._study.tell(trial, objective)
