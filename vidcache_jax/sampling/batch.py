"""Several videos made at once, divided over a mesh, each as if it were alone.

One program makes a chunk of all of them; the processes of several hosts run it together, and each
reads the videos that its own chips hold.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from vidcache_jax.array_typing import Latents
from vidcache_jax.models import wan_dit
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sampling.session import decode_chunk, encode_text, latent_shape, make_chunk
from vidcache_jax.sharding import DATA


@dataclasses.dataclass(frozen=True)
class BatchChunk:
    """The next chunk of every video of a batch, where its chips are (`own_videos`)."""

    latents: Latents
    frames: UInt8[Array, "B f H W 3"]


def generate_batch(
    model: VideoModel,
    rollout: Rollout,
    texts: Float[np.ndarray, "B Tt text_dim"],
    numbers: Int[np.ndarray, " B"],
    *,
    seed: int,
    num_chunks: int,
) -> Iterator[BatchChunk]:
    """Yields the chunks of one video for each prompt.

    Args:
      model: with its parameters where the rollout's layout wants them (`load_model`).
      rollout: of the model; B is a multiple of its layout's ``data``.
      texts: of `session.embed`, the same in every process.
      numbers: of the videos. A video's noise follows from the seed and its own number, whatever
        is made beside it and on how many chips.

    Raises:
      ValueError: the policy cannot serve or hold such videos, or the layout not divide them.
    """
    layout, batch = rollout.layout, len(numbers)
    rollout.check_length(num_chunks * model.rollout.frames_per_chunk)
    state = rollout.init(batch, model.latent_size, wan_dit.param_dtype(model.params))
    text_kv = encode_text(model.params, model.config, layout.spread(texts, DATA))
    keys = video_keys(seed, layout.spread(np.asarray(numbers, np.int32), DATA))
    decoder_state = layout.spread(model.codec.init_state(batch, *model.latent_size), DATA)
    for index in range(num_chunks):
        frames_made = index * model.rollout.frames_per_chunk
        rollout, state = rollout.advance(model.params, state, frames_made)
        state, latents, _ = make_chunk(
            rollout, latent_shape(model), model.params, state, text_kv, keys, np.int32(index)
        )
        frames, decoder_state = decode_chunk(
            model.codec, model.codec_params, latents, decoder_state, layout
        )
        yield BatchChunk(latents, frames)


@functools.partial(jax.jit, static_argnums=0)
def video_keys(seed: int, numbers: Int[Array, " B"]) -> Key[Array, " B"]:
    """A key for each video, of the seed and its number."""
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(numbers)


def own_videos(videos: Array) -> dict[int, np.ndarray]:
    """``videos[place]`` for each place in the batch that is this process's to write.

    Each video is one process's: of those with a chip that has it, the first on the mesh.
    """
    own = {}
    for shard in videos.addressable_shards:
        if shard.replica_id == 0:
            places = range(len(videos))[shard.index[0]]
            own.update(zip(places, np.asarray(shard.data), strict=True))
    return own
