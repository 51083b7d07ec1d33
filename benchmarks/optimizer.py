"""Many trials on one sealed run against the candle-by-candle scan, in one run on the same files.

    python benchmarks/optimizer.py --scale small --rounds 3 FOLDER

The run is that of `backtest.py`. Contestants run in turns in this process, `rounds` times, after one round that is not
counted (imports, compilation, file cache); the table shows medians. Everything has two threads. The scan has all paths
in two blocks in memory; it is linear in trials, so it walks a few of the same ones. "Near" levels are passed within
some hundred candles on these random walks, which favours the scan; "far" ones are the defaults of a search, seldom
reached here. "Trades" is every trade's result, "summary" the figures of two groups of alerts.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from backtest import CONFIG, RUN_ID, THREADS, prepare
from generate import SCALES

from lake_pipeline.backtest import PathBlock, Paths, StrategyConfig, open_paths
from lake_pipeline.io.store import LocalStore
from lake_pipeline.optimizer.evaluate import SCAN_BELOW, Evaluator, open_evaluator
from lake_pipeline.run import load_run

NEVER_SCAN, ALWAYS_SCAN = 0, 10**9
SCANNED = 10
NEAR, FAR = ((1.02, 1.12), (0.92, 0.99)), ((1.5, 3.5), (0.3, 0.6))


def random_trials(count: int, *, near: bool, seed: int = 0, step: bool = True, **exits: Any) -> list[StrategyConfig]:
    """Random (tp, sl) on steps of .01, near ones of .001, or without `step`; `exits` are made for each trial."""
    rng = np.random.default_rng(seed)
    bounds = NEAR if near else FAR
    tp, sl = (rng.uniform(low, high, count) for low, high in bounds)
    if step:
        tp, sl = np.round(tp, 3 if near else 2), np.round(sl, 3 if near else 2)
    return [
        StrategyConfig(tp=each_tp, sl=each_sl, **{name: make(rng) for name, make in exits.items()})
        for each_tp, each_sl in zip(tp.tolist(), sl.tolist(), strict=True)
    ]


def grid(near: bool) -> list[StrategyConfig]:
    (tp_low, tp_high), (sl_low, sl_high) = NEAR if near else FAR
    levels = np.linspace(tp_low, tp_high, 50).tolist(), np.linspace(sl_low, sl_high, 20).tolist()
    return [StrategyConfig(tp=tp, sl=sl) for tp, sl in itertools.product(*levels)]


def between(low: float, high: float) -> Callable[[Any], float]:
    return lambda rng: float(rng.uniform(low, high))


TRAIL = {"trail_distance": between(0.01, 0.07), "trail_activation": between(0, 0.1)}
BREAKEVEN = {"breakeven_trigger": between(0.01, 0.1), "breakeven_offset": between(-0.05, 0.005)}
TIERS = {"tiers": lambda rng: ((1.03, float(rng.uniform(0.97, 1.02))), (1.06, float(rng.uniform(1.02, 1.05))))}
TIME = {"time_stop_hours": lambda rng: float(rng.integers(1, 97) / 2)}
FAMILIES: dict[str, dict[str, Any]] = {
    "trail": TRAIL,
    "break-even": BREAKEVEN,
    "tiers": TIERS,
    "time": TIME,
    "time, any": {"time_stop_hours": between(1, 48)},
    "all at once": {**TRAIL, **BREAKEVEN, **TIERS, **TIME},
}


class Bench:
    """Seconds of each contestant, by name; `pairs` are its trials times alerts."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.seconds: dict[str, float] = {}
        self.pairs: dict[str, int] = {}

    def run(self, contestants: dict[str, tuple[Callable[[], Any], int]]) -> None:
        taken: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(self.rounds + 1):
            for name, (contestant, _) in contestants.items():
                started = time.perf_counter()
                contestant()
                if number:
                    taken[name].append(time.perf_counter() - started)
        self.seconds |= {name: statistics.median(values) for name, values in taken.items()}
        self.pairs |= {name: pairs for name, (_, pairs) in contestants.items()}

    def each(self, name: str) -> float:
        """Seconds a pair."""
        return self.seconds[name] / self.pairs[name]


def joined(paths: Paths, count: int) -> Paths:
    """The same paths in so many blocks in memory, so that a scan is the compiled loop and next to nothing else."""
    blocks = {}
    for number in range(count):
        parts = [paths.load(bucket) for bucket in paths.buckets[number::count]]
        before = np.cumsum([0, *(len(part.ts) for part in parts[:-1])]).tolist()
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
        for name in ("starts", "stops"):
            shifted = [getattr(part, name) + first for part, first in zip(parts, before, strict=True)]
            columns[name] = np.concatenate(shifted)
        blocks[str(number)] = PathBlock(**columns)
    return dataclasses.replace(paths, buckets=tuple(blocks), load=blocks.__getitem__, bucket_of=(), cache=None)


def check(scan: Evaluator, records: Evaluator, trials: Sequence[StrategyConfig], groups: Any) -> None:
    """Both ways give the same bits."""
    for mine, theirs in (
        (records.outcomes(trials), scan.outcomes(trials)),
        (records.totals(trials, groups), scan.totals(trials, groups)),
    ):
        for field in dataclasses.fields(mine):
            assert getattr(mine, field.name).tobytes() == getattr(theirs, field.name).tobytes(), field.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    prepare(SCALES[arguments.scale], arguments.folder)
    lake = LocalStore(arguments.folder)
    run = load_run(lake, RUN_ID)
    results = arguments.folder / f"results/run_id={RUN_ID}"

    def opened() -> Evaluator:
        return open_evaluator(run, CONFIG, lake=lake, threads=THREADS)

    alerts = opened().alerts.num_rows
    groups = np.array([np.arange(alerts) < alerts // 2, np.arange(alerts) >= alerts // 2])
    hundred = random_trials(100, near=False)

    def cold() -> None:
        shutil.rmtree(results, ignore_errors=True)
        opened().totals(hundred, groups)

    bench = Bench(arguments.rounds)
    bench.run({
        "cold, 100 trials": (cold, 100 * alerts),
        "second, 100 trials": (lambda: opened().totals(hundred, groups), 100 * alerts),
    })  # fmt: skip
    records = opened()
    records.status  # noqa: B018  # loads the records
    paths = joined(open_paths(run, horizon_ms=CONFIG.horizon_ms, lake=lake), THREADS)
    scan = Evaluator(paths, CONFIG, threads=THREADS, scan_below=ALWAYS_SCAN)

    def built() -> Evaluator:
        return Evaluator(paths, CONFIG, threads=THREADS, scan_below=NEVER_SCAN)

    for few in (1, 3, SCAN_BELOW, 20, 40):
        trials = random_trials(few, near=True)
        bench.run({
            f"scan of {few}": (lambda trials=trials: scan.totals(trials, groups), few * alerts),
            f"records built for {few}": (lambda trials=trials: built().totals(trials, groups), few * alerts),
        })  # fmt: skip

    def both_ways(name: str, trials: list[StrategyConfig]) -> None:
        some = trials[:: len(trials) // SCANNED]
        check(scan, records, some, groups)
        bench.run({
            f"{name}: scan, trades": (lambda: scan.outcomes(some), len(some) * alerts),
            f"{name}: trades": (lambda: records.outcomes(trials), len(trials) * alerts),
            f"{name}: scan, summary": (lambda: scan.totals(some, groups), len(some) * alerts),
            f"{name}: summary": (lambda: records.totals(trials, groups), len(trials) * alerts),
        })  # fmt: skip

    bars: list[tuple[str, str, str, float]] = []
    for where, near in (("near", True), ("far", False)):
        sets = {
            "grid 50 x 20": grid(near),
            "1,000 random": random_trials(1000, near=near),
            "1,000 off the steps": random_trials(1000, near=near, step=False),
        }
        for name, trials in sets.items():
            name = f"{name}, {where}"
            both_ways(name, trials)
            bars += [
                (f"{name}: trades", f"{name}: scan, trades", "faster", 6),
                (f"{name}: summary", f"{name}: scan, summary", "faster", 20),
            ]
        many = random_trials(100_000, near=near)
        bench.run(
            {f"100,000 random, {where}: summary": (lambda many=many: records.totals(many, groups), len(many) * alerts)}
        )
        bars.append((f"100,000 random, {where}: summary", "", "ns a pair", 10))
    for name, exits in FAMILIES.items():
        trials = random_trials(1000, near=True, **exits)
        both_ways(name, trials)
        bars += [
            (f"{name}: trades", f"{name}: scan, trades", "faster", 4),
            (f"{name}: summary", f"{name}: scan, summary", "faster", 4),
        ]
    report(bench, bars, alerts)


def report(bench: Bench, bars: Sequence[tuple[str, str, str, float]], alerts: int) -> None:
    print(f"{alerts:,} alerts; a pair is a trial and an alert\n")
    print("| what | ns a pair | scan, ns a pair | ratio | bar | met |")
    print("| --- | ---: | ---: | ---: | --- | --- |")
    for what, against, kind, bar in bars:
        nanoseconds = bench.each(what) * 1e9
        if kind == "faster":
            ratio = bench.each(against) / bench.each(what)
            row = (
                f"{bench.each(against) * 1e9:,.0f} | {ratio:,.0f} | {bar:g}x faster | {'yes' if ratio >= bar else 'NO'}"
            )
        else:
            row = f"| | at most {bar:g} ns | {'yes' if nanoseconds <= bar else 'NO'}"
        print(f"| {what} | {nanoseconds:,.1f} | {row} |")
    cold, second = (bench.seconds[f"{name}, 100 trials"] for name in ("cold", "second"))
    met = "yes" if cold / second >= 20 else "NO"
    print("\n| what | seconds | against | seconds | ratio | bar | met |")
    print("| --- | ---: | --- | ---: | ---: | --- | --- |")
    print(f"| second, 100 trials | {second:.3f} | cold | {cold:.3f} | {cold / second:.0f} | 20x faster | {met} |")
    print("\n| trials, paths cached | scan, s | records found first, s |")
    print("| ---: | ---: | ---: |")
    for name in bench.seconds:
        if name.startswith("scan of "):
            few = name.removeprefix("scan of ")
            print(f"| {few} | {bench.seconds[name]:.3f} | {bench.seconds[f'records built for {few}']:.3f} |")
    print(
        "\nOptuna alone, ms a trial: "
        + ", ".join(f"{name} {value * 1e3:.2f}" for name, value in optuna_alone().items())
    )


def optuna_alone(trials: int = 300) -> dict[str, float]:
    """Seconds a trial of asking for two levels and telling a number, nothing evaluated."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {
        "tp": optuna.distributions.FloatDistribution(1.5, 3.5, step=0.01),
        "sl": optuna.distributions.FloatDistribution(0.3, 0.6, step=0.01),
    }
    samplers = {"random": optuna.samplers.RandomSampler(seed=0), "TPE": optuna.samplers.TPESampler(seed=0)}
    found = {}
    for name, sampler in samplers.items():
        study = optuna.create_study(sampler=sampler, direction="maximize")
        started = time.perf_counter()
        for _ in range(trials):
            trial = study.ask(space)
            study.tell(trial, trial.params["tp"] - trial.params["sl"])
        found[name] = (time.perf_counter() - started) / trials
    return found


if __name__ == "__main__":
    main()
