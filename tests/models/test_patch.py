"""Tables whose encoders are one product together."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from remind_jax.data.kinds import KINDS
from remind_jax.models.encoders import patch
from remind_jax.models.network import make_network
from remind_jax.training.flat import flat_of
from tests.models.pure import random_params
from tests.models.specs import fusion_of, model_of

B, D, G, C = 4, 8, 3, 3
FUSION = fusion_of(heads=2, experts=4, hidden=6, group_routers=True, gate_threshold=0.5)


def _tables(count: int, **model: Any) -> tuple[Any, dict[str, Any], dict[str, np.ndarray]]:
    """A network of tables of 3, 4, 5 ... columns, its parameters and a batch."""
    inputs = {f"table{i}": KINDS["tabular"].spec((3 + i % 5,), 0) for i in range(count)}
    network = make_network(model_of(**{"width": D, "tokens": 1, "fusion": FUSION} | model), inputs, G, C)
    rng = np.random.default_rng(0)
    batch = {name: rng.normal(size=(B, *x.shape)).astype(np.float32) for name, x in inputs.items()}
    batch["present"] = np.arange(B)[:, None] != np.arange(count)[None]
    return network, random_params(network.shapes), batch | {"group": np.arange(B, dtype=np.int32)}


def test_tables_together_have_the_tokens_and_gradients_of_each_alone(monkeypatch) -> None:
    network, params, batch = _tables(4)

    def found() -> Any:
        def loss(params):
            tokens = network.encode(params, batch)
            return jnp.sum(jnp.sin(tokens)), tokens

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    together = found()
    monkeypatch.setattr(patch.PatchEncoder, "is_stacked", False)
    alone = found()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), together, alone)
    assert np.abs(together[0]["encoders/table3/embed/kernel"]).min() > 0


def test_tables_of_other_forms_stay_by_themselves() -> None:
    """Several tokens, a hidden layer, or a kernel that is large: each keeps its own product."""
    for model in ({"tokens": 2}, {"encoder_hidden": 4}):
        network, params, batch = _tables(2, **model)
        assert "stacked" not in str(jax.make_jaxpr(network.encode)(params, batch).jaxpr.pretty_print(name_stack=True))
    network, params, batch = _tables(2)
    assert "stacked" in str(jax.make_jaxpr(network.encode)(params, batch).jaxpr.pretty_print(name_stack=True))
    assert not patch.PatchEncoder((9000,), tokens=1, width=8, hidden=0, dropout=0.0, rngs=nnx.Rngs(0)).is_stacked


def test_the_number_of_kernels_hardly_grows_with_the_number_of_tables() -> None:
    """Of the encoders and their gradients, which were one product and one sum of each for every table."""

    def kernels(count: int) -> int:
        network, params, batch = _tables(count)
        layout = flat_of(network.shapes)

        def loss(packed):
            return jnp.sum(jnp.sin(network.apply(layout.unpack(packed), batch, gate="gated").logits))

        text = jax.jit(jax.grad(loss)).lower(layout.pack(params)).compile().as_text()
        entry = text[text.index("ENTRY") :]
        return sum(entry.count(f" {name}(") for name in ("fusion", "dot", "call", "concatenate", "copy"))

    assert kernels(24) <= 1.3 * kernels(7)
