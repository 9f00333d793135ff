"""Whether a checkpoint is causal and how it wants to be sampled, where that can be known.

A causal Wan has exactly the tensors of the bidirectional one it was trained from, so its file and
what stands beside it are the only evidence.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from checkpoints_convert.source import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """As the fields of `CheckpointInfo`; None is unknown."""

    is_causal: bool | None = None
    frames_per_chunk: int | None = None
    denoise_timesteps: tuple[float, ...] | None = None
    timestep_shift: float | None = None
    evidence: str = "nothing in the file says so, and causal models have the same tensors"

    def describe(self) -> str:
        """For people."""
        if self.is_causal is None:
            text = "unknown whether causal or bidirectional"
        else:
            text = (
                "causal, to be run in chunks" if self.is_causal else "bidirectional, as Wan's own"
            )
        if self.frames_per_chunk:
            text += f", chunks of {self.frames_per_chunk} latent frames"
        if self.denoise_timesteps:
            steps = ", ".join(f"{step:g}" for step in self.denoise_timesteps)
            text += f", denoise timesteps {steps} before shift {self.timestep_shift:g}"
        return f"{text} ({self.evidence})"


_FOUR_STEPS = dict(denoise_timesteps=(1000.0, 750.0, 500.0, 250.0), timestep_shift=5.0)

_BY_NAME: tuple[tuple[str, Mapping[str, Any]], ...] = (
    (r"rolling[-_]?forcing",
     dict(frames_per_chunk=3, denoise_timesteps=(1000.0, 800.0, 600.0, 400.0, 200.0),
          timestep_shift=5.0)),
    (r"causal[-_]?forcing.*frame[-_]?wise|frame[-_]?wise.*causal[-_]?forcing",
     dict(frames_per_chunk=1)),
    (r"causal[-_]?forcing", dict(frames_per_chunk=3)),
    (r"self[-_]?forcing|sfwan|krea[-_]?realtime|longlive(?!.*2)",
     dict(frames_per_chunk=3, **_FOUR_STEPS)),
    (r"ode_init", dict(frames_per_chunk=3)),
    (r"causvid|reward[-_]?forcing|longlive", {}),
)  # fmt: skip
"""Names of files or folders of released causal models; the first that occurs counts.

Settings are those of the repositories' own configs: Self-Forcing's ``self_forcing_dmd.yaml``,
``rolling_forcing_dmd.yaml``, Krea's ``self_forcing_server_14b.yaml``, LongLive's
``longlive_inference_infinity.yaml`` (its ``longlive_inference.yaml`` runs the same weights in
chunks of 6). What is not there is unknown: it is not guessed.
"""

_BY_CLASS = {
    "CausalWanModel": True,
    "CausalWanTransformer3DModel": True,
    "WanModel": False,
    "WanTransformer3DModel": False,
}


def provenance(source: Source) -> Provenance:
    """What can be known of a checkpoint, with the evidence."""
    # The file and the folder it came in, as repositories are cloned; not what lies above.
    name = "/".join([*source.path.absolute().parts[-2:]]).lower()
    for pattern, known in _BY_NAME:
        if match := re.search(pattern, name):
            return Provenance(is_causal=True, evidence=f"{match[0]!r} in its name", **known)
    if source.picked and source.picked.startswith("generator"):
        return Provenance(
            is_causal=True, evidence=f"its weights are in {source.picked!r}, as Self-Forcing saves"
        )
    kind = (source.config or {}).get("_class_name")
    if kind in _BY_CLASS:
        return Provenance(
            is_causal=_BY_CLASS[kind],
            evidence=f"its config.json says {kind}; a fine-tuned one may say so too"
            if not _BY_CLASS[kind]
            else f"its config.json says {kind}",
        )
    return Provenance()
