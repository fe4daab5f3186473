"""Rows of an arena made up for tests, as arena.csv holds them, and rows of differences."""

from collections.abc import Mapping, Sequence

from remind_jax.studies.arena_figures import Row

FIGURES = {"ward": ("classes", "auroc", "macro_f1"), "trial": ("survival", "c_uno", "c_index")}
FIGURES |= {"days": ("regression", "mae", "rmse")}
# Three methods over three sets: `new` is best in each, `old` worst; fewer days of error are better.
VALUES = {
    "ward": {"soft_moe": (80.0, 82.0), "new": (84.0, 85.0), "old": (70.0, 74.0)},
    "trial": {"soft_moe": (0.7, 0.72), "new": (0.75, 0.76), "old": (0.6, 0.5)},
    "days": {"soft_moe": (3.0, 3.2), "new": (2.0, 2.1), "old": (5.0, 4.0)},
}
SECONDS = {"soft_moe": 10.0, "new": 25.0, "old": 2.0}


def row(data: str, method: str, seed: int, value: float | None, protocol: str = "as_found", **cells: object) -> Row:
    """A row; its tail is a tenth below the value, and its second figure half of it."""
    task, figure, second = FIGURES[data]
    tail = None if value is None else 0.9 * value
    half = None if value is None else value / 2
    found = {"data": data, "protocol": protocol, "method": method, "seed": seed, "task": task, "figure": figure}
    found |= {"value": value, "tail": tail, "second": second, "second_value": half, "second_tail": None, "worst": ""}
    found |= {"n": 100 + seed, "n_tail": 20, "parameters": 41_000, "flops": 2_500_000.0, "seconds": 5.0}
    found |= {"processor_seconds": SECONDS.get(method, 1.0), "version": "0.2.0", "jax": "0.10.2", "python": "3.11.7"}
    found |= {"rows": "", "predictions": "", "config": "", "processor": "Some CPU"} | cells
    return {name: "" if cell is None else str(cell) for name, cell in found.items()}


def rows(values: Mapping[str, Mapping[str, Sequence[float | None]]] = VALUES, protocol: str = "as_found") -> list[Row]:
    """A row a set, method and seed."""
    return [
        row(data, method, seed, value, protocol)
        for data, methods in values.items()
        for method, seeds in methods.items()
        for seed, value in enumerate(seeds)
    ]


def difference(figure: str, method: str, mean: float, half: float, p_holm: float, samples: str = "all") -> Row:
    """A row of differences.csv: `mean` and an interval of `half` to either side."""
    found = {"samples": samples, "figure": figure, "method": method, "baseline": "soft_moe", "mean": mean}
    found |= {"low": mean - half, "high": mean + half, "p": p_holm / 2, "p_holm": p_holm, "sd": "", "p_seeds": ""}
    return {name: str(cell) for name, cell in (found | {"wins": 2, "n": 2}).items()}


def differences() -> dict[tuple[str, str], list[Row]]:
    """Of `VALUES`: `new` is better in ward and in days, level in trial; `old` is worse in days alone."""
    found = {
        "ward": [difference("auroc", "new", 3.5, 1.0, 0.004), difference("auroc", "old", -9.0, 12.0, 0.2)],
        "trial": [difference("c_uno", "new", 0.045, 0.05, 0.08), difference("c_uno", "old", -0.16, 0.01, 0.06)],
        "days": [difference("mae", "new", -1.05, 0.2, 0.001), difference("mae", "old", 1.4, 0.3, 0.001)],
    }
    found["ward"] += [difference("auroc", "new", 2.0, 0.5, 0.01, "tail")]
    found["ward"] += [difference("auroc", "old", -1.0, 2.0, 0.01, "tail")]
    return {(data, "as_found"): rows for data, rows in found.items()}
