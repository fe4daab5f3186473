"""The kinds of modalities; to add one, write a subclass of `kind.Kind` in a file of its own and name it here."""

from remind_jax.data.kinds.codes import CODES
from remind_jax.data.kinds.embedding import EMBEDDING
from remind_jax.data.kinds.events import EVENTS
from remind_jax.data.kinds.kind import Kind
from remind_jax.data.kinds.pixels import IMAGE, VOLUME
from remind_jax.data.kinds.series import SERIES
from remind_jax.data.kinds.tabular import TABULAR
from remind_jax.data.kinds.text import TEXT

KINDS: dict[str, Kind] = {kind.name: kind for kind in (TABULAR, TEXT, CODES, EMBEDDING, IMAGE, VOLUME, EVENTS, SERIES)}
"""Every kind by its name in schema.yaml."""
