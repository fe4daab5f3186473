"""Names of the programs that JAX compiles, or takes from where it keeps them."""

import contextlib
import logging
import re
from collections.abc import Iterator

import jax

_DONE = re.compile(r"Finished XLA compilation of (\S+) in")


class _Names(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.names += _DONE.findall(record.getMessage())


@contextlib.contextmanager
def compiled() -> Iterator[list[str]]:
    """Yields a list to which the name of every program comes that is compiled meanwhile, such as `jit(step)`."""
    logger, found = logging.getLogger("jax"), _Names()
    logger.addHandler(found)
    propagates, logger.propagate = logger.propagate, False
    try:
        with jax.log_compiles():
            yield found.names
    finally:
        logger.propagate = propagates
        logger.removeHandler(found)
