"""Names of modality combinations that fit into tables and next to plots."""

from collections.abc import Iterable, Sequence


def short_names(
    names: Iterable[Sequence[str]], declared: Sequence[str], width: int
) -> tuple[list[str], dict[str, str]]:
    """Names combinations, given by their modalities, in at most `width` characters each.

    The first form that fits is used: the joined names, `all 7`, `all but x+y`, the same abbreviated, or cut off.
    `declared` has all modalities in declared order. Returns the names, and the abbreviation of each abbreviated
    modality.
    """
    short = _abbreviations(declared)
    out, used = [], {}
    for present in names:
        missing = [m for m in declared if m not in present]
        but = "all but " if missing and len(missing) < len(present) else ""
        listed = missing if but else present
        full, name = "+".join(present) or "none", but + "+".join(listed)
        if len(full) <= width:
            name = full
        elif not missing:
            name = f"all {len(declared)}"
        elif len(name) > width:
            name = but + "+".join(short.get(m, m) for m in listed)
            used |= {m: short[m] for m in listed if m in short}
        out.append(name if len(name) <= width else f"{name[: width - 2]}..")
    return out, {m: used[m] for m in declared if m in used}


def _abbreviations(declared: Sequence[str]) -> dict[str, str]:
    """Returns the shortest beginning of each modality, of at least three characters, that no other modality has."""
    short = {}
    for name in declared:
        others = [m for m in declared if m != name]
        lengths = (k for k in range(3, len(name) + 1) if not any(m.startswith(name[:k]) for m in others))
        short[name] = name[: next(lengths, len(name))]
    return {name: abbreviation for name, abbreviation in short.items() if abbreviation != name}
