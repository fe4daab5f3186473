"""What a key of a config is, and the limits of its values."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a value must be: whether it is within the limit, False for NaN, and the limit in words, after "must be"."""

    holds: Callable[[Any], bool]
    says: str


class Key(NamedTuple):
    """A key of a config: its default, and by that its type, what it sets, and the values that it may have, by name or
    as a limit; None for any of its type. `words` may stand in place of a number.
    """

    default: Any
    meaning: str
    allowed: tuple[str, ...] | Limit | None = None
    words: tuple[str, ...] = ()


def _is_span(text: str) -> bool:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    return not text or (found is not None and int(found[1]) < int(found[2]))


def _are_trackers(text: str) -> bool:
    names = text.split(",") if text else []
    return set(names) <= {"tensorboard", "mlflow", "wandb"} and len(set(names)) == len(names)


AT_LEAST_ONE = Limit(lambda x: x >= 1, "at least 1")
POSITIVE = Limit(lambda x: 0 < x < math.inf, "above 0 and finite")
NOT_NEGATIVE = Limit(lambda x: 0 <= x < math.inf, "at least 0 and finite")
LAST_FOLD = Limit(lambda x: x >= -1, "at least -1")
FINITE = Limit(math.isfinite, "finite")
SHARE = Limit(lambda x: 0 < x < 1, "above 0 and below 1")
PART = Limit(lambda x: 0 <= x <= 1, "at least 0 and at most 1")
BELOW_ONE = Limit(lambda x: 0 <= x < 1, "at least 0 and below 1")
TRACK = Limit(_are_trackers, "empty, or some of tensorboard, mlflow and wandb, separated by commas")
SPAN = Limit(_is_span, "FIRST:STOP with FIRST below STOP, for example 10:20")
