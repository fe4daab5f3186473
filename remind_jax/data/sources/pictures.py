"""Drawings for the twins of EMBED and FPRM: mammograms, fundus photographs, flow videos and oxygen maps from numbers.

Nothing here comes from a patient. A drawing shows three factors: the first is an amount (dense tissue, bright spots,
flow, lack of oxygen), the other two say where or how. Every factor is drawn through `squash`, so that any real number
is legal, and can be measured off the pixels at 32 x 32. Shapes that are not factors (`body`) belong to a patient.
"""

import functools

import numpy as np

BODY = 4
"""Numbers that describe a patient's shapes, standard normal."""


def squash(x: np.ndarray) -> np.ndarray:
    """Real numbers to (-1, 1), nearly linear for the values that a standard normal variable takes."""
    return np.tanh(0.6 * np.asarray(x, np.float32))


def soft_step(x: np.ndarray) -> np.ndarray:
    """From 0 to 1 around 0; unlike the logistic function written with exp it never overflows."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


@functools.lru_cache(maxsize=32)
def _kernel(size: int, knots: int) -> np.ndarray:
    """Float32 [size, knots]: Gaussian interpolation whose rows have unit norm, so that unit variance stays."""
    x = np.linspace(0, knots - 1, size)[:, None] - np.arange(knots)
    kernel = np.exp(-0.5 * (x / 0.7) ** 2)
    return (kernel / np.linalg.norm(kernel, axis=1, keepdims=True)).astype(np.float32)


def texture(n: int, size: int, rng: np.random.Generator, knots: tuple[int, ...] = (5, 11, 23)) -> np.ndarray:
    """Smooth random fields of unit variance.

    Args:
      n: how many.
      size: height and width.
      rng: source of randomness.
      knots: random values a side of each layer, coarse layers first; each weighs 0.7 of the one before.

    Returns float32 [n, size, size].
    """
    weights = 0.7 ** np.arange(len(knots))
    weights /= np.linalg.norm(weights)
    field = np.zeros((n, size, size), np.float32)
    for weight, count in zip(weights.astype(np.float32), knots, strict=True):
        kernel = _kernel(size, count)
        # Two large products: one small product a picture takes many times as long.
        rows = rng.standard_normal((n * count, count), np.float32) @ kernel.T
        columns = rows.reshape(n, count, size).swapaxes(1, 2).reshape(n * size, count)
        field += weight * (columns @ kernel.T).reshape(n, size, size)
    return field


def _grain(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> np.ndarray:
    return scale * rng.standard_normal(shape, np.float32)


def _bytes(x: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1 as uint8; others are clipped."""
    return np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)


def _columns(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """The columns of [n, p], each [n, 1, 1] in float32 to go with pictures [n, s, s]."""
    return tuple(np.asarray(x, np.float32).T[:, :, None, None])


def mammogram(
    factors: np.ndarray, body: np.ndarray, size: int, rng: np.random.Generator, *, oblique: bool, synthetic: bool
) -> np.ndarray:
    """Draws breasts with the chest wall on the left, dense tissue bright, uint8 [n, size, size, 1].

    `factors` [n, 3] are the amount of dense tissue and its place from chest wall to nipple and from top to bottom;
    `body` [n, `BODY`] depth and height of the breast, size of the pectoral muscle, share of fat. `oblique` is MLO, with
    the pectoral muscle in the upper corner, else CC; `synthetic` is C-view, with sharper tissue and less noise, else
    full-field digital.
    """
    amount, deep, low = (squash(f) for f in _columns(factors))
    depth, height, muscle, fat = (squash(b) for b in _columns(body))
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = axis[None, None, :], axis[None, :, None]
    a, b, middle = 0.68 + 0.14 * depth, 0.38 + 0.06 * height, 0.56 if oblique else 0.5
    # The oblique breast hangs: its lower half is the fuller one.
    vertical = (y - middle - (0.10 * x if oblique else 0.0)) / b
    edge = 1 - (x / a) ** 2 - vertical**2
    inside = soft_step(edge * size / 5)
    thickness = np.sqrt(np.clip(edge, 0, 1))
    centre = a * (0.45 + 0.22 * deep)
    near = np.exp(-0.5 * (((x - centre) / 0.19) ** 2 + ((vertical - 0.42 * low) / 0.42) ** 2))
    field = texture(len(factors), size, rng)
    threshold = 1.45 - 1.25 * amount
    dense = soft_step((2.2 * near + 0.45 * field - threshold) / (0.14 if synthetic else 0.22))
    dense *= soft_step((edge - 0.14) * 30)  # under the skin lies fat
    tissue = (0.20 + 0.03 * fat) * (0.5 + 0.5 * thickness) + 0.025 * field + 0.55 * dense * (0.55 + 0.45 * thickness)
    if oblique:
        corner = 1 - x / (0.34 + 0.07 * muscle) - y / (0.62 + 0.10 * muscle)
        tissue = tissue + (0.62 - tissue) * soft_step(corner * size / 3) * 0.9
    picture = inside * tissue * (1.12 if synthetic else 1.0)
    picture += _grain(picture.shape, 0.012 if synthetic else 0.028, rng) * (0.25 + inside)
    return _bytes(picture)[..., None]


def _eye(body: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates of an eye's background: `t` [n,s,s] from the disc towards the macula, `y`, and the round field."""
    side = np.where(np.asarray(body)[:, 0] > 0, 1.0, -1.0).astype(np.float32)[:, None, None]
    axis = 2 * (np.arange(size, dtype=np.float32) + 0.5) / size - 1
    x, y = axis[None, None, :], axis[None, :, None]
    t = 0.45 - x * side
    field = soft_step((0.94 - np.sqrt(x**2 + y**2)) * size / 3)
    return t, y, field


def vessels(body: np.ndarray, size: int, width: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Arteries and veins that leave the optic disc in arcs.

    Args:
      body: [n, `BODY`]; the side of the disc and the arcs' curvature.
      size: height and width in pixels.
      width: [n, 1, 1] or one number, half width of a vessel; the picture goes from -1 to 1.

    Returns two float32 [n, size, size] from 0 to 1. A vessel thinner than a pixel is dimmed and not lost.
    """
    t, y, _ = _eye(body, size)
    _, bend, wave, _ = _columns(body)
    blurred = np.sqrt(np.square(width) + (0.8 / size) ** 2)
    strength = width / blurred

    def arc(curve: float, shift: float) -> np.ndarray:
        curve = curve * (1 + 0.15 * squash(bend))
        along = curve * y**2 + 0.05 * np.sin(6 * y + 2 * wave + shift) * np.abs(y)
        distance = np.abs(t - along) / np.sqrt(1 + (2 * curve * y) ** 2)
        return strength * np.exp(-((distance / blurred) ** 2))

    def branch(slope: float, shift: float) -> np.ndarray:
        line = slope * t + 0.06 * np.sin(4 * t + 2 * wave + shift)
        thin = 0.7 * np.exp(-((np.abs(y - line) / blurred) ** 2)) * soft_step(40 * t) * soft_step(30 * (0.62 - t))
        return strength * thin

    arteries = np.maximum.reduce([arc(0.95, 0.0), arc(-1.5, 1.0), branch(0.55, 0.0)])
    veins = np.maximum.reduce([arc(1.45, 2.0), arc(-2.6, 3.0), branch(-0.60, 1.0)])
    return arteries, veins


def fundus(factors: np.ndarray, body: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A colour photograph of the back of the eye.

    Args:
      factors: [n, 3]: bright spots (exudates), cup of the optic disc, width of the vessels.
      body: [n, `BODY`].
      size: height and width in pixels.
      rng: of texture and noise.

    Returns uint8 [n, size, size, 3].
    """
    spots, cup, wide = (squash(f) for f in _columns(factors))
    n = len(factors)
    t, y, field = _eye(body, size)
    arteries, veins = vessels(body, size, 0.036 + 0.024 * wide)
    tint = squash(_columns(body)[3])
    ground = 0.62 + 0.05 * tint + 0.05 * texture(n, size, rng, (3, 6, 12)) - 0.18 * ((t - 0.45) ** 2 + y**2)
    macula = np.exp(-((t - 0.80) ** 2 + y**2) / 0.045)
    blood = np.maximum(0.75 * arteries, veins)
    distance = np.sqrt(t**2 + (0.9 * y) ** 2)
    disc = soft_step((0.19 - distance) * 45)
    bowl = soft_step((0.105 + 0.07 * cup - distance) * 45)
    lesions = soft_step((texture(n, size, rng, (13, 27)) - 1.95 + 1.1 * spots) / 0.12) * (1 - disc)
    red = ground * (1.30 - 0.25 * macula - 0.40 * blood) + 0.22 * disc + 0.10 * bowl + 0.20 * lesions
    green = ground * (0.58 - 0.22 * macula - 0.34 * blood) + 0.34 * disc + 0.28 * bowl + 0.55 * lesions
    blue = ground * (0.26 - 0.10 * macula - 0.12 * blood) + 0.16 * disc + 0.38 * bowl + 0.22 * lesions
    picture = np.stack([red, green, blue], axis=-1)
    picture += _grain(picture.shape, 0.02, rng)
    return _bytes(picture * field[..., None])


def flow(factors: np.ndarray, body: np.ndarray, size: int, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Draws videos of retinal blood flow over one heartbeat, the brighter a vessel the faster, uint8 [n, t, size, size,
    1].

    `factors` [n, 3] are mean flow, pulsation and time of the peak; `body` is [n, `BODY`]; `frames` is t.
    """
    mean, pulse, delay = (squash(f) for f in _columns(factors))
    _, _, field = _eye(body, size)
    arteries, veins = vessels(body, size, 0.045)
    ground = 0.16 + 0.03 * texture(len(factors), size, rng, (4, 9))
    phase = (np.arange(frames, dtype=np.float32) / frames)[None, :] - (0.35 + 0.22 * delay[:, :, 0])
    # A sharp rise and a slow fall, with mean close to 0 over the beat.
    beat = (np.exp(1.5 * (np.cos(2 * np.pi * phase) - 1)) - 0.37)[:, :, None, None]
    level = (0.42 + 0.24 * mean)[:, None] * (1 + (0.5 + 0.4 * pulse)[:, None] * beat)
    tree = np.maximum(arteries, 0.8 * veins)[:, None]
    picture = ground[:, None] * (1 + 0.6 * level) + level * tree
    picture *= 1 + _grain(picture.shape, 0.10, rng)
    return _bytes(picture * field[:, None])[..., None]


# Lowest to highest saturation.
_COLOURS = np.array(
    [[0.15, 0.10, 0.55], [0.10, 0.55, 0.80], [0.35, 0.80, 0.35], [0.95, 0.80, 0.20], [0.85, 0.15, 0.10]]
)


def oxygen(factors: np.ndarray, body: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A false-colour map of oxygen saturation: blue is low, red is high.

    Args:
      factors: [n, 3]: area that lacks oxygen, saturation of the arteries (minus), saturation of the veins (minus).
      body: [n, `BODY`].
      size: height and width in pixels.
      rng: of texture and noise.

    Returns uint8 [n, size, size, 3].
    """
    lack, arterial, venous = (squash(f) for f in _columns(factors))
    _, _, field = _eye(body, size)
    arteries, veins = vessels(body, size, 0.050)
    n = len(factors)
    patches = soft_step((texture(n, size, rng, (7, 15)) - 1.0 + 1.3 * lack) / 0.3)
    level = 0.55 + 0.03 * texture(n, size, rng, (6, 12)) - 0.30 * patches
    level = level + veins * (0.33 - 0.20 * venous - level)
    level = level + arteries * (0.82 - 0.16 * arterial - level)
    level = np.clip(level + _grain(level.shape, 0.02, rng), 0, 1)
    places = np.linspace(0, 1, len(_COLOURS))
    picture = np.stack([np.interp(level, places, colour) for colour in _COLOURS.T], axis=-1)
    return _bytes(picture * field[..., None])
