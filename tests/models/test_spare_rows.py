import numpy as np
import pytest

from remind_jax.data.kinds import KINDS
from remind_jax.models import spare_rows
from remind_jax.models.network import ensemble_of, make_network
from tests.models.pure import jitted, random_params
from tests.models.specs import fusion_of, model_of

B, G = 6, 3
INPUTS = {name: KINDS["tabular"].spec((4,), 0) for name in ("labs", "codes")}


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("imputation", ["modality+group", "bank"])
def test_every_combination_and_one_not_seen_read_what_they_read_without_spare_rows(imputation, networks) -> None:
    """The number of combinations, which says that one was not seen, is that of a spare row."""
    fusion = fusion_of(heads=2, experts=4, hidden=6, group_routers=True, gate_threshold=0.9)
    single = make_network(model_of(width=8, tokens=1, fusion=fusion, imputation=imputation), INPUTS, G, 3)
    network = ensemble_of(single, networks)
    params = random_params(network.shapes)
    rng = np.random.default_rng(0)
    batch = {name: rng.normal(size=(B, 4)).astype(np.float32) for name in INPUTS}
    batch["present"] = rng.random((B, 2)) < 0.5
    batch["group"] = np.array([0, 1, 2, 3, 3, 0], np.int32)
    axis = int(networks > 1)
    wide = spare_rows.add(params, 5, axis, unseen=True)
    assert wide["block_0/group_router"].shape[axis] == G + 5
    plain, found = (jitted(network).apply(x, batch, gate="always").logits for x in (params, wide))
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)
    zeros = jitted(network).apply(spare_rows.add(params, 5, axis), batch, gate="always").logits
    assert np.abs(zeros - plain)[3:5].max() > 1e-3
    back = spare_rows.remove(wide, 5, axis)
    assert back.keys() == params.keys()
    for path, x in params.items():
        np.testing.assert_array_equal(back[path], x)
