"""What a model keeps of train rows as its fusion sees them: some of the rows themselves, or centres of them."""

from typing import Any

import jax
import numpy as np

from remind_jax.data import pipeline, samplers
from remind_jax.models.fusion import FUSIONS
from remind_jax.models.model import Params
from remind_jax.models.network import Network
from remind_jax.runtime import devices

MOST = 4_096  # rows that centres are found among
BANK, CENTRES = "block_0/bank", "block_0/centres"


class KeptRows:
    """Encodes train rows, which a seed chooses, by the weights that are to keep them.

    Weights get them at every evaluation, or centres as stage 2 begins, as `FusionBlock.keeps` says.
    """

    def __init__(self, config: Any, network: Network, store: pipeline.Store):
        """Takes the network, or the ensemble, of the weights, and the train rows."""
        self._size, self._seed, self._store = config.eval.batch_size, config.seed, store
        self._kind, n = FUSIONS[config.fusion.kind].keeps, len(store)
        most = config.fusion.bank if self._kind == "rows" else MOST
        self._positions = samplers.shuffled(config.seed, n)(0, min(most, n))
        self._look = jax.jit(lambda params, batch: network.apply(params, batch, gate="never").vectors)

    def rows(self, params: Params) -> Params:
        """Returns weights with train rows in their bank; as they are where the fusion keeps none."""
        if self._kind != "rows":
            return params
        bank, present = np.zeros_like(params[BANK]), np.zeros_like(params[f"{BANK}_present"])
        vectors, has = self._vectors(params)
        bank[..., : len(has), :, :], present[..., : len(has), :] = vectors, has
        return {**params, **devices.broadcast({BANK: bank, f"{BANK}_present": present})}

    def centres(self, params: Params) -> Params:
        """Returns weights with the centres of each modality, see `centres_of`; as they are where there are none."""
        if self._kind != "centres":
            return params
        vectors, has = self._vectors(params)
        shape, networks = np.shape(params[CENTRES]), vectors.reshape(-1, *vectors.shape[-3:])
        found = np.stack([centres_of(each, has, shape[-2], self._seed) for each in networks])
        return {**params, **devices.broadcast({CENTRES: np.float32(found.reshape(shape))})}

    def _vectors(self, params: Params) -> tuple[np.ndarray, np.ndarray]:
        """Returns vectors of the rows [..., n, m, d], zeros where they miss a modality, and bool [n, m] what they have.

        Those of an ensemble have its networks first.
        """
        placed, parts = jax.device_put(params), []
        for start in range(0, len(self._positions), self._size):
            part = self._positions[start : start + self._size]
            found = self._look(placed, self._store.take(np.resize(part, self._size)))  # one shape, one program
            parts.append(np.asarray(found, np.float32)[..., : len(part), :, :])
        return np.concatenate(parts, axis=-3), self._store.presence[self._positions]


def centres_of(vectors: np.ndarray, has: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Finds centres of each modality by k-means, from vectors [n, m, d] of rows that have bool [n, m]; [m, count, d].

    They are of rows that have all modalities; where these are fewer than `count`, of those that have the one. Of fewer
    different rows than `count` each is a centre, and the first of them again.
    """
    from sklearn.cluster import KMeans

    found, whole = np.zeros((vectors.shape[1], count, vectors.shape[2])), has.all(axis=1)
    for j in range(vectors.shape[1]):
        rows = np.unique(vectors[whole if whole.sum() >= count else has[:, j], j].astype(np.float64), axis=0)
        if len(rows) > count:
            found[j] = KMeans(count, n_init=1, random_state=seed).fit(rows).cluster_centers_
        elif len(rows):
            found[j] = np.resize(rows, (count, rows.shape[1]))
    return found
