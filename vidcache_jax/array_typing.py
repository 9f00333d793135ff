"""The axis legend and the array types used throughout.

    L  transformer layers            N  attention heads
    B  batch (independent videos)    H  head_dim
    F  latent frames of a chunk      D  model width, D = N H
    K  cache slots (latent frames)   P  tokens per latent frame
    T  query tokens, T = F P         S  cached tokens a query may see, usually S = K P
    Y, X, C  latent rows, columns and channels (channels last; H is never a height)
    G  1 or N: an axis that either is shared by all heads or has one entry per head

Sizes are in latent frames unless a name says tokens.
"""

from jaxtyping import Array, Float, Int, PyTree

Latents = Float[Array, "B F Y X C"]
Tokens = Float[Array, "B T D"]
Heads = Float[Array, "B N T H"]
"""Per-head queries, keys or values of T tokens."""
TextHeads = Float[Array, "B N Tt H"]
"""Cross-attention keys or values of the Tt text tokens."""
CachedHeads = Float[Array, "B N S H"]
Positions = Int[Array, "B G T 3"]
"""(frame, row, column) of each token, the three axes of RoPE."""
CachedPositions = Int[Array, "B G S 3"]
Timesteps = Float[Array, "B F"]
"""Diffusion time of each latent frame, 0 (clean) to 1000 (noise)."""
FrameNumber = Int[Array, ""]
Params = PyTree
"""Parameters (arrays) or their shapes: a plain nested dict."""
