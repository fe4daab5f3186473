"""Every encoder gives what its model in torch gives, with weights read from a checkpoint as users read theirs."""

from collections.abc import Callable

import pytest

for _package in ("torch", "transformers", "safetensors"):
    pytest.importorskip(_package, reason="compares with models in torch: pip install -e .[torch]", exc_type=ImportError)

from tests.models import parity  # noqa: E402, needs what is looked for above

SMALL = {
    "vit": (lambda: parity.vit_case("small"), None),
    "vit, names before release 5": (lambda: parity.vit_case("small"), parity.vit_before_5),
    "t5 relu": (lambda: parity.t5_case("small", gated=False), None),
    "t5 gated": (lambda: parity.t5_case("small", gated=True), None),
    "resnet": (lambda: parity.resnet_case("narrow"), None),
    "resnet, names of torchvision": (lambda: parity.resnet_case("narrow"), parity.resnet_of_torchvision),
    "r3d": (lambda: parity.video_case("small"), None),
}
FULL = {
    "vit": lambda: parity.vit_case("base"),
    "t5 relu": lambda: parity.t5_case("base", gated=False),
    "t5 gated": lambda: parity.t5_case("base", gated=True),
    "resnet": lambda: parity.resnet_case("50"),
}


def check(case: parity.Case, rename: parity.Names | None = None, tolerance: float = 1e-5) -> None:
    """Ours is within a share of the largest entry of torch's, and about as close to torch in float64 as torch is."""
    for difference in parity.compare(case, rename):
        assert difference.largest > 0.1
        assert difference.ours < tolerance * difference.largest, difference
        assert difference.ours_wide < 10 * difference.torch_wide, difference


@pytest.mark.parametrize("name", SMALL)
def test_small_encoders_equal_torch(name: str) -> None:
    make, rename = SMALL[name]
    check(make(), rename)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size_encoders_equal_torch(name: str) -> None:
    make: Callable[[], parity.Case] = FULL[name]
    check(make(), tolerance=1e-4)


def test_another_weight_would_show() -> None:
    def turned(tensors):
        key = "layers.1.attention.q_proj.weight"
        return {**tensors, key: tensors[key].T}

    (difference,) = parity.compare(parity.vit_case("small"), turned)
    assert difference.ours > 1e-2 * difference.largest
