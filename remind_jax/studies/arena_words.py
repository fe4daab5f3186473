"""What the figures of an arena say, in sentences; all of it follows from its rows."""

from collections import Counter
from collections.abc import Iterable, Sequence

from remind_jax.evaluation import report as reports
from remind_jax.evaluation.names import words
from remind_jax.studies import ranks, tables
from remind_jax.studies.arena_figures import TITLES, Arena, View, tail_name
from remind_jax.studies.ranks import LEVEL, Ranking

MOST_NAMED = 4  # methods of one list
RARE = {
    "tail": "On the tail, the samples of rare combinations",
    "unseen": "On samples of combinations that training has not seen",
}


def answer(arena: Arena) -> list[str]:
    """Says who is ahead, what of it is more than chance, how far from the baseline, at what cost; a sentence each."""
    view, tail = arena.view(arena.main, "value"), arena.view(arena.main, "tail")
    ranking = view.ranking
    if not ranking:
        return ["No two methods have a figure in every set and seed, so that nothing is ranked.", *left_out(view, "")]
    said = [leading(arena, ranking), on_the_tail(arena, ranking, tail.ranking), told_apart(ranking)]
    said += [dependent(arena), *against(arena, ranking), *cost(arena, ranking), *by_protocol(arena)]
    return [
        sentence
        for sentence in (*said, *left_out(view, ""), *left_out(tail, f" of the {tail_name(arena.main)} samples"))
        if sentence
    ]


def leading(arena: Arena, ranking: Ranking) -> str:
    """Says who has the best mean rank, over what."""
    figures = Counter(arena.figure(data, arena.main) for data in arena.distinct("data", protocol=arena.main))
    by = ", ".join(f"{title(name)} in {n}" for name, n in figures.items())
    best, *others = ranking.methods
    after = listed(f"{method} ({ranking.means[method]:.1f})" for method in others[:2])
    return (
        f"{best} has the best mean rank, {ranking.means[best]:.1f} of {len(ranking.methods)} methods, over "
        f"{many(ranking.blocks, 'data set')} {words(arena.main)} ({by}; a set counts by its mean over seeds); {after} "
        f"{'follow' if len(others) > 1 else 'follows'}."
    )


def on_the_tail(arena: Arena, ranking: Ranking, tail: Ranking | None) -> str:
    """Says who has the best mean rank on samples of rare combinations, and where the best of all samples is there."""
    samples = RARE[tail_name(arena.main)]
    if not tail:
        return f"{samples}, nothing can be ranked."
    best, first = ranking.methods[0], tail.methods[0]
    said = f"{samples}, the best is {first} with {tail.means[first]:.1f}"
    said += f" over {many(tail.blocks, 'set')}" if tail.blocks != ranking.blocks else ""
    if first == best:
        return f"{said}, too."
    if best not in tail.means:
        return f"{said}; {best} is not ranked there."
    return f"{said}; {best} has {tail.means[best]:.1f} there, place {tail.methods.index(best) + 1}."


def told_apart(ranking: Ranking) -> str:
    """Says which methods differ beyond Nemenyi's critical difference, if Friedman's test lets them."""
    test = ranking.friedman
    if ranking.difference is None or not test:
        return "No test can be made of these blocks: that takes two or more in which methods differ."
    said = f"Friedman's test, F({test.degrees[0]}, {test.degrees[1]}) = {test.f:.2f}, p {p_text(test.p)}, "
    if not ranking.differs:
        return f"{said}does not tell the methods apart: all their ranks could be chance."
    said += f"finds that they are not all alike; Nemenyi's critical difference is {ranking.difference:.1f} ranks."
    count, every = sum(map(len, ranking.apart.values())), len(ranking.means) * (len(ranking.means) - 1) // 2
    pairs = [f"{listed(better)} {_are(len(better))} ahead of {worse}" for better, worse in _groups(ranking)]
    if not pairs:
        return f"{said} By it no pair is apart: all are level, which is no proof of being equal."
    said += f" By it {many(count, 'pair')} of {every} {_are(count)} apart: {'; '.join(pairs)}."
    return f"{said} Everything else is level, which is no proof of being equal."


def _groups(ranking: Ranking) -> list[tuple[list[str], str]]:
    """Groups the methods that are ahead of the same others, and names these."""
    found: dict[tuple[str, ...], list[str]] = {}
    for one, worse in ranking.apart.items():
        found.setdefault(worse, []).append(one)
    return [
        (better, listed(worse) if len(worse) <= MOST_NAMED else f"{worse[0]} and the {len(worse) - 1} ranked after it")
        for worse, better in found.items()
    ]


def dependent(arena: Arena) -> str:
    """Says what the same tests find with every set and seed as a block."""
    view = arena.view(arena.main, "value", by_seed=True)
    ranking = view.ranking
    if not ranking or ranking.blocks == len(set(arena.distinct("data", protocol=arena.main))):
        return ""
    count = sum(map(len, ranking.apart.values()))
    said = (
        f"With every set and seed as a block there are {ranking.blocks} blocks, which are not independent, so that it "
        f"finds too much: {ranking.methods[0]} leads with {ranking.means[ranking.methods[0]]:.1f}, "
        f"{many(count, 'pair')} of methods {_are(count)} apart"
    )
    if ranking.difference is not None:
        said += f" (critical difference {ranking.difference:.1f})"
    found = ranks.wilcoxon(view.values, view.more, arena.baseline) if arena.baseline else None
    if not found or arena.baseline is None:
        return f"{said}."
    sure = [method for method in ranking.methods if found.get(method, 1.0) < LEVEL]
    ahead = [m for m in sure if ranking.means[m] < ranking.means[arena.baseline]]
    behind = [m for m in sure if m not in ahead]
    return f"{said}; by Wilcoxon's test with Holm {some(ahead)} better than {arena.baseline} and {some(behind)} worse."


def against(arena: Arena, ranking: Ranking) -> list[str]:
    """Says in how many sets the best, and any other, differs from the baseline by the cells' intervals."""
    sets, baseline = arena.distinct("data", protocol=arena.main), arena.baseline
    if baseline is None:
        return []
    verdicts = {
        (method, part): Counter(arena.verdict(data, arena.main, method, part) for data in sets)
        for method in arena.methods
        for part in ("all", "tail")
        if method != baseline
    }
    best, said = ranking.methods[0], []
    if best != baseline:
        whole, tail = verdicts[best, "all"], verdicts[best, "tail"]
        said.append(
            f"Against {baseline}, by the paired intervals with p by Holm within each set, {best} is better in "
            f"{whole['better']} of {many(len(sets), 'set')} and worse in {whole['worse']}, on the tail better in "
            f"{tail['better']} and worse in {tail['worse']} of {len(sets) - tail['untested']} with an interval."
        )
    better, worse = ([m for (m, part), n in verdicts.items() if part == "all" and n[v]] for v in ("better", "worse"))
    others = sum(method != baseline for method in arena.methods)
    said.append(
        f"Better than {baseline} beyond chance in at least one of these sets, all samples: {counted(better)} of "
        f"{many(others, 'other')}; worse: {counted(worse)}."
    )
    return said


def cost(arena: Arena, ranking: Ranking) -> list[str]:
    """Says what the best takes, and which methods none beats in both rank and time."""
    best, known = ranking.methods[0], {m: arena.cost(m, "processor_seconds") for m in ranking.methods}
    own = known[best]
    if own is None:
        return []
    said = f"A run of {best} takes {seconds(own)} of one processor (median over sets)"
    if (base := known.get(arena.baseline or "")) and best != arena.baseline:
        said += f", {own / base:.1f} times what {arena.baseline} takes"
    front = [f"{m} ({seconds(known[m])}, rank {ranking.means[m]:.1f})" for m in arena.front]
    return [f"{said}. No other method is both better ranked and cheaper than {listed(front)}."]


def by_protocol(arena: Arena) -> list[str]:
    """Says who leads in each protocol, where there are several."""
    if len(arena.protocols) < 2:
        return []
    found = {protocol: arena.view(protocol, "value").ranking for protocol in arena.protocols}
    said = [
        f"{words(p)} {r.methods[0]} ({r.means[r.methods[0]]:.1f}, {many(r.blocks, 'set')})"
        for p, r in found.items()
        if r
    ]
    return [f"Best mean rank by protocol of missingness: {'; '.join(said)}."] if said else []


def left_out(view: View, where: str) -> list[str]:
    """Says which methods and blocks have no place in a ranking."""
    said = []
    if view.found.undefined:
        said.append(f"No method has a figure{where} in {_blocks(view.found.undefined)}, which is left out there.")
    if view.found.lacking:
        each = [f"{method} ({_blocks(holes)})" for method, holes in view.found.lacking.items()]
        said.append(f"Not ranked{where}, for lack of figures in some sets and seeds: {', '.join(each)}.")
    return said


def _blocks(blocks: Iterable[tuple[str, str]]) -> str:
    """Names data sets with their seeds, such as `heart seeds 0, 2`."""
    seeds: dict[str, list[str]] = {}
    for data, seed in blocks:
        seeds.setdefault(data, []).append(seed)
    return listed(f"{data} seed{'s' * (len(some) > 1)} {', '.join(some)}" for data, some in seeds.items())


def title(figure: str) -> str:
    """Names a figure in a sentence."""
    return reports.plain_title(TITLES.get(figure, words(figure)))


def listed(names: Iterable[str]) -> str:
    """Joins names by commas and a last `and`."""
    *first, last = [*names] or ["none"]
    return f"{', '.join(first)} and {last}" if first else last


def named(names: Sequence[str]) -> str:
    """Lists the first of many names."""
    return ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")


def counted(methods: Sequence[str]) -> str:
    """Counts methods and names the first."""
    return f"{len(methods)} ({named(methods)})" if methods else "none"


def some(methods: Sequence[str]) -> str:
    """Counts methods with the verb."""
    return f"{counted(methods)} {_are(len(methods) or 1)}"


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def many(n: int, name: str) -> str:
    """Counts things."""
    return f"{n:,} {name}" if n == 1 else f"{n:,} {name}s"


def p_text(p: float) -> str:
    """Writes p with its sign."""
    return tables.p_text(p).replace("<", "< ") if p < 0.001 else f"= {tables.p_text(p)}"


def seconds(value: float | None) -> str:
    """Writes a time of processors or walls."""
    return "-" if value is None else f"{value:,.0f} s" if value >= 100 else f"{value:.1f} s"


def size(value: float | None) -> str:
    """Writes a count of operations or parameters with the letter of its thousands."""
    if value is None:
        return "-"
    for letter, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= unit:
            return f"{value / unit:.1f} {letter}"
    return f"{value:.0f}"
