"""What plain models see of pixels."""

import numpy as np
import pytest

from remind_jax.data.kinds.pixels import shrink


def test_shrink_takes_means_of_blocks():
    image = np.arange(16 * 16, dtype=np.uint8).reshape(1, 16, 16, 1)
    small = shrink(image).reshape(8, 8)
    assert small[0, 0] == pytest.approx(np.mean([0, 1, 16, 17]) / 255)
    assert small[7, 7] == pytest.approx(np.mean([238, 239, 254, 255]) / 255)
    video = np.stack([np.full((2, 10, 3), t, np.uint8) for t in range(6)])[None]
    small = shrink(video).reshape(4, 2, 8, 3)
    # Six frames in four blocks: 0; 1 and 2; 3; 4 and 5. Two rows stay as they are.
    np.testing.assert_allclose(small[:, 0, 0, 0] * 255, [0, 1.5, 3, 4.5], rtol=1e-6)
