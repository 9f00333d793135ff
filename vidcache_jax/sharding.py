"""How a rollout lies on a mesh of chips: which array axis goes over which mesh axis.

    data       videos; no communication at all
    heads      attention heads, and with them the cache, which never moves
    sequence   tokens of the chunk whose queries attend, for more chips than heads can use

Between attentions the chunk's tokens are divided over ``heads`` and ``sequence`` together. Around
each attention q, k, v go from tokens to heads and the result comes back, four all-to-alls of the
chunk a layer and pass (DeepSpeed-Ulysses, arXiv 2309.14509); ``sequence`` gathers the chunk's own k
(twice: un-rotated and rotated) and v besides. Nothing that crosses between chips grows with what
the cache holds, but for a few numbers a token that a policy sums over heads or queries
(`ops.scoring`).

Weights lie on every chip, or with ``shard_weights`` in equal parts, gathered layer by layer.
"""

import dataclasses
import itertools
import math
import typing
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from vidcache_jax.array_typing import Heads, Params, Tokens

DATA, HEADS, SEQUENCE = "data", "heads", "sequence"
MODEL_AXES = (SEQUENCE, HEADS)
"""Chips that work on the same video. In this order the tokens of one place on ``sequence`` are
neighbours, so that exchanging heads for tokens stays within ``heads``."""
AXIS_OF = {"B": DATA, "N": HEADS}
"""Mesh axis of a letter of the axis legend (`array_typing`); the others are not divided."""


def make_mesh(
    data: int = 1, heads: int = 1, sequence: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of ``data * heads * sequence`` devices.

    Devices that follow each other work on the same video: in JAX's order those of a host do. On TPU
    slices of up to 64 chips `jax.experimental.mesh_utils.create_device_mesh` brings the chips of a
    video no closer together, and often less close.

    Raises:
      ValueError: there are fewer or more devices than that.
    """
    devices = jax.devices() if devices is None else devices
    _check_places(data, heads, sequence, len(devices))
    return Mesh(np.asarray(devices).reshape(data, sequence, heads), (DATA, SEQUENCE, HEADS))


def make_abstract_mesh(
    num_devices: int, data: int = 1, heads: int = 1, sequence: int = 1
) -> AbstractMesh:
    """`make_mesh` of devices that need not be there."""
    _check_places(data, heads, sequence, num_devices)
    return AbstractMesh((data, sequence, heads), (DATA, SEQUENCE, HEADS))


def _check_places(data: int, heads: int, sequence: int, num_devices: int) -> None:
    needed = data * heads * sequence
    if min(data, heads, sequence) < 1 or needed != num_devices:
        raise ValueError(
            f"a mesh of data={data}, heads={heads}, sequence={sequence} takes {needed} devices, "
            f"but there are {num_devices}"
        )


def parse_mesh(text: str) -> dict[str, int]:
    """``"data=4,heads=2"`` -> sizes of the mesh axes.

    Raises:
      ValueError: not of that form.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in (DATA, *MODEL_AXES) or name in sizes or not size.isdecimal():
            raise ValueError(
                f"mesh {text!r}: {part!r} is not one of data=N, heads=N, sequence=N, each once; "
                'for example "data=4,heads=2"'
            )
        sizes[name] = int(size)
    return sizes


def possible_meshes(
    num_devices: int, num_heads: int, num_tokens: int, videos: int | None = None
) -> list[str]:
    """Meshes of all devices over which a run divides, as `parse_mesh` reads them.

    Args:
      num_tokens: of a chunk.
      videos: made at once; None for one on each place on ``data``.
    """
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    found = []
    for heads, sequence in itertools.product(divisors, divisors):
        data, rest = divmod(num_devices, heads * sequence)
        divided = (
            num_heads % heads,
            num_tokens % (heads * sequence),
            (videos or data) % (data or 1),
        )
        if not rest and not any(divided):
            sizes = {DATA: data, HEADS: heads, SEQUENCE: sequence}
            parts = [f"{axis}={size}" for axis, size in sizes.items() if size > 1]
            found.append(",".join(parts) or f"{DATA}=1")
    return found


@dataclasses.dataclass(frozen=True)
class Layout:
    """Puts the arrays of a rollout on a mesh; without one, leaves them alone.

    Attributes:
      mesh: of devices, or an abstract one to plan for.
      shard_weights: each chip of a video holds its part of every layer's weights.

    Raises:
      ValueError: weights are to be in parts, and no video has more than one chip.
    """

    mesh: Mesh | AbstractMesh | None = None
    shard_weights: bool = False

    def __post_init__(self):
        if self.shard_weights and self.size(*MODEL_AXES) == 1:
            raise ValueError(
                "weights are divided over the devices of a video, and here each video has one: "
                "give a mesh with heads=N or sequence=N, or leave --shard-weights out"
            )

    def size(self, *axes: str) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes) if self.mesh else 1

    def check(self, batch: int, num_heads: int, num_tokens: int) -> None:
        """Refuses what cannot be divided, and says what can.

        Args:
          num_tokens: of a chunk.

        Raises:
          ValueError: videos, heads or tokens do not divide over their mesh axes.
        """
        for what, count, axes in (
            ("videos", batch, (DATA,)),
            ("attention heads", num_heads, (HEADS,)),
            ("tokens of a chunk", num_tokens, MODEL_AXES),
        ):
            size = self.size(*axes)
            if count % size:
                devices = self.size(DATA, *MODEL_AXES)
                # With a video for each place on data there are as many as there are places.
                videos = None if batch == self.size(DATA) else batch
                working = possible_meshes(devices, num_heads, num_tokens, videos)
                raise ValueError(
                    f"{count} {what} do not divide over {' x '.join(axes)} = {size}; meshes of "
                    f"{devices} devices that work: {'; '.join(working) or 'none'}"
                )

    def tokens(self, x: Tokens) -> Tokens:
        """Activations between attentions: each chip has some tokens, whole."""
        return self._constrain(x, None, MODEL_AXES)

    def queries(self, q: Heads) -> Heads:
        """Queries, from tokens to heads; over ``sequence`` each chip attends with its own."""
        return self.own_queries(self._constrain(q, None, None, MODEL_AXES))

    def own_queries(self, q: Heads) -> Heads:
        """The queries that a chip attends with, of those it has."""
        return self._constrain(q, None, HEADS, SEQUENCE)

    def to_heads(self, x: Heads) -> Heads:
        """Queries, keys or values of all the chunk's tokens, from tokens to heads."""
        return self._constrain(self.queries(x), None, HEADS)

    def to_tokens(self, attended: Heads) -> Heads:
        """Attended values, from heads back to tokens."""
        return self._constrain(self.own_queries(attended), None, None, MODEL_AXES)

    def whole(self, block_params: Params) -> Params:
        """A layer's weights on every chip that needs them, gathered just before use."""
        if not self.shard_weights:
            return block_params
        return jax.tree.map(lambda leaf: self._constrain(leaf), block_params)

    def placed(self, tree: Any) -> Any:
        """A tree of annotated dataclasses (`axis_letters`), divided by videos and heads."""
        return _constrained(tree, self._places(tree)) if self.mesh else tree

    def moved(self, tree: Any) -> Any:
        """`placed` on the host; leaves that lie where they should are not copied."""
        if self.mesh is None:
            return tree
        leaves, treedef = jax.tree.flatten(tree)
        return jax.tree.unflatten(treedef, map(jax.device_put, leaves, self._places(tree)))

    def kept(self, tree: Any) -> Any:
        """A tree divided by heads as `placed` did, within `Rollout.step`."""
        return _constrained(tree, self.specs(tree, HEADS))

    def specs(self, tree: Any, axis: str) -> list[PartitionSpec]:
        """Where a mesh axis divides each leaf of a tree of annotated dataclasses."""
        only = lambda letter: axis if AXIS_OF.get(letter) == axis else None
        return [PartitionSpec(*map(only, own)) for own in axis_letters(tree)]

    def params(self, params: Params) -> Any:
        """Sharding of every parameter: whole, or a layer's kernels in parts."""
        size = self.size(*MODEL_AXES)

        def part(path, leaf) -> NamedSharding:
            # The kernels of the layers are all but a hundredth of the weights.
            names = [getattr(key, "key", None) for key in path]
            is_kernel = names[0] == "blocks" and names[-1] == "kernel"
            divisible = [axis for axis in (1, 2) if is_kernel and leaf.shape[axis] % size == 0]
            if not (self.shard_weights and divisible):
                return self.named()
            longest = max(divisible, key=lambda axis: leaf.shape[axis])
            return self.named(*[None] * longest, MODEL_AXES)

        return jax.tree_util.tree_map_with_path(part, params)

    def spread(self, tree: Any, *axes: str) -> Any:
        """Arrays on the mesh, whole or with the leading axes divided over mesh axes."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        return jax.tree.map(lambda leaf: to_chips(leaf, self.named(*axes)), tree)

    def named(self, *axes: Any) -> NamedSharding:
        """Sharding that divides the leading array axes over mesh axes (None: not)."""
        if self.mesh is None:
            raise ValueError("this layout has no mesh")
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _places(self, tree: Any) -> list[NamedSharding]:
        return [self.named(*map(AXIS_OF.get, own)) for own in axis_letters(tree)]

    def _constrain(self, x: Any, *axes: Any) -> Any:
        """Within `Rollout.step`, where ``data`` is mapped over already."""
        return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes)) if self.mesh else x


ONE_DEVICE = Layout()


def to_chips(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, to the chips of them all: each takes its own part."""
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def _constrained(tree: Any, shardings: Sequence[Any]) -> Any:
    """A tree with a sharding for each of its leaves."""
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, map(jax.lax.with_sharding_constraint, leaves, shardings))


def axis_letters(tree: Any) -> list[tuple[str, ...]]:
    """Letters of the axis legend for each leaf, from the annotation of its dataclass field.

    ``Float[Array, "*stack B N S H"]`` in a stacked cache gives ("L", "B", "N", "S", "H"). Axes
    that are spelled by a variadic name in capitals, ``"*LB D D"``, are its last letters.

    Raises:
      TypeError: an array lies in something else than an annotated dataclass.
    """
    if not dataclasses.is_dataclass(tree) or isinstance(tree, type):
        raise TypeError(
            f"a cache holds a {type(tree).__name__}: to be divided over chips, its arrays must "
            "lie in dataclasses whose annotations name their axes"
        )
    hints, letters = typing.get_type_hints(type(tree)), []
    for field in dataclasses.fields(tree):
        value = getattr(tree, field.name)
        if field.metadata.get("static") or value is None:
            continue
        names = getattr(hints[field.name], "dim_str", None)
        if names is not None:
            own = [name for name in names.split() if not name.startswith("*")]
            spelled = next((name[1:] for name in names.split() if name.startswith("*")), "")
            leading = value.ndim - len(own)
            spelled = spelled if spelled.isupper() else "L" * leading
            letters.append((*spelled[len(spelled) - leading :], *own))
        else:
            letters += axis_letters(value)
    return letters
