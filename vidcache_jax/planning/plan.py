"""What one chip holds and does for a chunk of each of its videos."""

import dataclasses

import jax

from vidcache_jax.planning.chips import Chip
from vidcache_jax.planning.collectives import Collective
from vidcache_jax.planning.counts import Work, work_of_a_chip
from vidcache_jax.planning.inputs import ChunkInputs, nbytes_on_a_chip
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sharding import DATA, MODEL_AXES

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on some chips, counted for one of them.

    Attributes:
      weights, state: bytes, of the DiT and of the rollout's state: the policy's cache.
      other_inputs: prompt keys and values, noise.
      temporaries: bytes that the program needs besides.
      work: operations of this chip.
      weights_read: bytes of the weights of all passes, each of which reads them once; those that
        are in parts whole.
      traffic: collectives of this chip.
      compiler_seconds: what the compiler expects of a chunk without kernels of ours and
        collectives; None if nothing was compiled, and temporaries and traffic are by formula.
    """

    chip: Chip
    num_chips: int
    videos: int
    frames_per_chunk: int
    weights: int
    state: int
    other_inputs: int
    temporaries: int
    work: Work
    weights_read: int
    traffic: tuple[Collective, ...]
    compiler_seconds: float | None

    @property
    def total(self) -> int:
        return self.weights + self.state + self.other_inputs + self.temporaries

    @property
    def headroom(self) -> float:
        """Bytes of the chip's memory that are left; negative if the run does not fit."""
        return self.chip.hbm_gib * GIB - self.total

    @property
    def moved(self) -> int:
        """Bytes of collectives a chunk."""
        return sum(each.nbytes * each.times for each in self.traffic)

    @property
    def attention_seconds(self) -> float:
        """Of attention, at the share of the peak that its kernels have been seen to reach."""
        return self.work.attention / (self.chip.tflops * 1e12 * self.chip.attention)

    @property
    def link_seconds(self) -> float:
        return self.moved / (self.chip.link_gbs * 1e9)

    @property
    def linear_seconds(self) -> float:
        """Of matrix products: the matrix units' time, or the memory's to give them the weights.

        The memory's is longer where a chip has few tokens, some hundreds.
        """
        matrix_units = self.work.linear / (self.chip.tflops * 1e12 * self.chip.linear)
        return max(matrix_units, self.weights_read / (self.chip.hbm_gbs * 1e9))

    @property
    def seconds(self) -> float:
        """Roofline of a chunk: matrix products, attention, links, one after the other."""
        return self.linear_seconds + self.attention_seconds + self.link_seconds

    def frames_per_second(self, pixel_frames: int) -> float:
        """Pixel frames a second of all videos together, of ``pixel_frames`` a latent frame."""
        return self.videos * self.frames_per_chunk * pixel_frames / self.seconds


def plan_of(
    rollout: Rollout,
    inputs: ChunkInputs,
    chip: Chip,
    *,
    temporaries: int,
    traffic: tuple[Collective, ...],
    compiler_seconds: float | None,
) -> Plan:
    """A plan from what a program takes in, and what is known of the program."""
    batch, frames_per_chunk, *latent_size, _ = inputs.noise.shape
    rows, columns = latent_size
    passes = len(rollout.rollout.denoise_timesteps) + 1
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(inputs.params))
    return Plan(
        chip=chip,
        num_chips=rollout.layout.size(DATA, *MODEL_AXES),
        videos=batch,
        frames_per_chunk=frames_per_chunk,
        weights=nbytes_on_a_chip(inputs.params),
        state=nbytes_on_a_chip(inputs.state),
        other_inputs=nbytes_on_a_chip((inputs.text, inputs.noise, inputs.renoise)),
        temporaries=temporaries,
        work=work_of_a_chip(rollout, batch, (rows, columns)),
        weights_read=passes * weights,
        traffic=traffic,
        compiler_seconds=compiler_seconds,
    )
