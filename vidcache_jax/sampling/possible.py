"""What can be said against a run before anything of it is made."""

import jax

from vidcache_jax.models import wan_dit
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.sampling.rollout import Rollout


def check_possible(model: VideoModel, rollout: Rollout, batch: int, num_frames: int) -> None:
    """Refuses what cannot be run however much memory there is, from shapes alone.

    Args:
      model: may have shapes in place of parameters, as `open_model` gives it.
      batch: videos made at once, on all devices together.
      num_frames: latent frames of each.

    Raises:
      ValueError: the policy cannot hold such videos or serve the model's chunks, or the layout not
        divide them.
    """
    rollout.check_length(num_frames)
    dtype = wan_dit.param_dtype(model.params)
    try:
        jax.eval_shape(lambda: jax.tree.leaves(rollout.empty(batch, model.latent_size, dtype)))
    except ValueError as error:
        # Without the note on its own frames that JAX adds to errors of what it traces.
        raise ValueError(str(error)) from error
