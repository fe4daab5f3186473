import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.ops import draws

KEY = jax.random.key(7)


def _bits(keys, shape):
    return np.asarray(jax.jit(draws.bits, static_argnums=1)(keys, shape))


def test_every_bit_is_set_half_of_the_time() -> None:
    found = _bits(draws.fold_in(KEY, jnp.arange(64)), (4096,))
    share = [((found >> bit) & 1).mean() for bit in range(32)]
    np.testing.assert_allclose(share, 0.5, atol=5 * 0.5 / np.sqrt(found.size))
    # Bytes are as evenly spread as chance has it: chi-squared of 255 degrees of freedom.
    for shift in (0, 8, 16, 24):
        counts = np.bincount((found.ravel() >> shift) & 255, minlength=256)
        expected = found.size / 256
        assert 150 < np.sum((counts - expected) ** 2 / expected) < 370


@pytest.mark.parametrize("what", ["places", "samples", "steps", "seeds", "salts"])
def test_neighbours_have_nothing_in_common(what) -> None:
    """Counters that differ by one, at every place of a mask: as many equal bits as of coins, and no drift."""
    shape, samples = (2048,), jnp.arange(32)

    def drawn(seed=7, step=0, sample=0, salt=0, place=0):
        step_key = draws.fold_in(jax.random.key(seed), step)
        keys = draws.fold_in(draws.fold_in(step_key, samples + sample), salt)
        return _bits(keys, (shape[0] + 1,))[:, place : place + shape[0]]

    other = {"places": "place", "samples": "sample", "steps": "step", "seeds": "seed", "salts": "salt"}[what]
    one, two = drawn(), drawn(**{other: 8 if what == "seeds" else 1})
    equal = np.unpackbits((one ^ two).view(np.uint8)).mean()
    assert abs(equal - 0.5) < 5 * 0.5 / np.sqrt(one.size * 32)
    assert abs(np.corrcoef(one.ravel().astype(float), two.ravel().astype(float))[0, 1]) < 5 / np.sqrt(one.size)


def test_keys_of_one_number_differ_and_those_of_two_numbers_too() -> None:
    steps = draws.fold_in(KEY, jnp.arange(3000))
    words = np.asarray(jax.random.key_data(draws.fold_in(steps[:, None], jnp.arange(30)[None])))
    assert words.shape == (3000, 30, 2)
    assert len(np.unique(words.reshape(-1, 2).view(np.uint64))) == 90_000
    assert np.asarray(jax.random.uniform(steps[0])) != np.asarray(jax.random.uniform(steps[1]))


def _mix(x):
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
    return x ^ (x >> 16)


def test_draws_are_those_of_the_definition_in_whole_numbers() -> None:
    weyl, found = 0x9E3779B9, []
    for sample in range(3):
        first = _mix(0 ^ _mix((sample + 1) * weyl % 2**32))
        second = _mix(1 ^ first)
        words = _mix((first + second) % 2**32), second
        found.append([_mix(_mix((place * weyl + words[0]) % 2**32) ^ words[1]) for place in range(5)])
    np.testing.assert_array_equal(_bits(draws.fold_in(jax.random.key(1), jnp.arange(3)), (5,)), found)


def test_a_mask_is_a_few_operations() -> None:
    """Threefry of one mask is a loop of rounds for each key; this becomes one kernel with what reads it."""

    def masked(x, keys):
        return jnp.where(draws.bits(draws.fold_in(keys, 3), x.shape[1:]) < jnp.uint32(2**31), x, 0.0)

    keys = draws.fold_in(KEY, jnp.arange(8))
    text = jax.jit(masked).lower(jnp.ones((8, 16)), keys).compile().as_text()
    assert " while(" not in text
    assert text[text.index("ENTRY") :].count(" fusion(") <= 2
