"""Signed distances and palettes of the sprite world.

A signed distance is in pixels, negative inside; `cover` turns it into antialiased opacity. Image
axes: x to the right, y downwards. Palettes are RGB rows in [0, 1].
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Plane = Float[Array, "H W"]
Image = Float[Array, "H W 3"]
Scalar = Float[Array, ""]

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
COLOUR_RGB = np.array(
    [[0.90, 0.10, 0.10], [1.00, 0.50, 0.00], [1.00, 0.92, 0.10], [0.08, 0.62, 0.15],
     [0.05, 0.88, 0.90], [0.10, 0.22, 0.95], [0.55, 0.12, 0.78], [1.00, 0.55, 0.82]],
    np.float32,
)  # fmt: skip

PLACES = ("meadow", "desert", "night", "sea", "snow")
# Per place: the top of the sky, its foot, the hills, the ground.
PLACE_RGB = np.array(
    [
        [[0.45, 0.70, 0.95], [0.80, 0.92, 1.00], [0.28, 0.50, 0.30], [0.52, 0.75, 0.38]],
        [[0.95, 0.75, 0.55], [1.00, 0.90, 0.72], [0.70, 0.48, 0.32], [0.90, 0.77, 0.52]],
        [[0.04, 0.05, 0.16], [0.16, 0.16, 0.34], [0.08, 0.11, 0.16], [0.15, 0.22, 0.22]],
        [[0.68, 0.82, 0.92], [0.90, 0.94, 0.92], [0.45, 0.52, 0.50], [0.12, 0.38, 0.55]],
        [[0.62, 0.66, 0.75], [0.82, 0.84, 0.90], [0.60, 0.68, 0.80], [0.95, 0.97, 1.00]],
    ],
    np.float32,
)

LANDMARK_RGB = np.array(
    [[0.75, 0.25, 0.20], [0.95, 0.90, 0.80], [0.20, 0.40, 0.65], [0.85, 0.65, 0.20],
     [0.15, 0.45, 0.20], [0.55, 0.35, 0.60]],
    np.float32,
)  # fmt: skip
TRUNK_RGB = np.array([0.35, 0.24, 0.15], np.float32)
# The wall's tone is a random mixture of these two.
WALL_RGB = np.array([[0.55, 0.55, 0.58], [0.62, 0.42, 0.30]], np.float32)

SHAPES = ("circle", "square", "triangle", "cross")


def cover(distance: Plane) -> Plane:
    """Opacity of a shape: 1 inside, 0 outside, linear over the one pixel at its edge."""
    return jnp.clip(0.5 - distance, 0.0, 1.0)


def over(image: Image, rgb: Float[Array, "*any 3"], opacity: Plane) -> Image:
    """`rgb`, one colour or an image, laid over `image`."""
    rgb = jnp.broadcast_to(jnp.asarray(rgb).reshape((1,) * (3 - rgb.ndim) + rgb.shape), image.shape)
    return image + (rgb - image) * opacity[..., None]


def disc(x: Plane, y: Plane, radius: Scalar) -> Plane:
    # The small constant keeps the gradient at the centre finite.
    return jnp.sqrt(x * x + y * y + 1e-6) - radius


def box(x: Plane, y: Plane, half_width: Scalar, half_height: Scalar) -> Plane:
    return jnp.maximum(jnp.abs(x) - half_width, jnp.abs(y) - half_height)


def triangle(x: Plane, y: Plane, radius: Scalar) -> Plane:
    """Equilateral, pointing up, with circumscribed circle of `radius`."""
    return jnp.maximum(jnp.abs(x) * float(np.sqrt(0.75)) - y * 0.5, y) - radius * 0.5


def cross(x: Plane, y: Plane, radius: Scalar) -> Plane:
    arm = radius * 0.36
    return jnp.minimum(box(x, y, radius, arm), box(x, y, arm, radius))


def sprite_distances(x: Plane, y: Plane, radius: Scalar) -> Float[Array, "shapes H W"]:
    """One plane per entry of `SHAPES`, scaled to look equally large."""
    return jnp.stack(
        [
            disc(x, y, radius),
            box(x, y, radius * 0.86, radius * 0.86),
            triangle(x, y - radius * 0.2, radius * 1.25),
            cross(x, y, radius * 1.08),
        ]
    )
