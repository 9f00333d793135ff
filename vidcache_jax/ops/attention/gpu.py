"""cuDNN's fused attention on NVIDIA GPUs, with lengths per head and slots.

cuDNN knows one length per batch element, so heads are folded into the batch, which costs nothing
in our layout [B, N, S, H]. It does not know slots: those that count are gathered to the front.
A layer's keys have to be cut out of the stack for it anyway, and the same copy does both.

Written without a GPU at hand: the folding is tested with another attention in cuDNN's place and
the call is lowered for CUDA, but it has not been run.
"""

import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vidcache_jax.array_typing import Heads
from vidcache_jax.ops.attention.keys import Keys
from vidcache_jax.ops.attention.ref import AttentionPart

FusedAttention = Callable[..., tuple[jax.Array, jax.Array]]
"""(q, k, v [B, 1, ., H], lengths [B] or None) -> (softmax attention, log-sum-exp [B, 1, T])."""

# The largest that every GPU with cuDNN attention takes.
_MOST_HEAD_DIM = 128


def reason_against(q: Heads, keys: Keys) -> str | None:
    """Why cuDNN cannot do this, None if it can."""
    if keys.visible is not None:
        return "a mask per query or per key is not supported; say what counts by slots or lengths"
    if keys.bias is not None:
        return "cuDNN wants a bias for each query and key; use another implementation"
    if keys.slots is not None and keys.lengths is not None:
        return "slots and lengths together are not supported"
    if not q.dtype == keys.k.dtype == keys.v.dtype:
        return f"q, k, v of one dtype are needed, not {q.dtype}, {keys.k.dtype}, {keys.v.dtype}"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"bfloat16 or float16 is needed, not {q.dtype}"
    if q.shape[-1] > _MOST_HEAD_DIM or q.shape[-1] % 8 != 0:
        return f"head_dim={q.shape[-1]} is no multiple of 8 up to {_MOST_HEAD_DIM}"
    try:
        _cudnn_module().check_cudnn_version()
    except (ImportError, AttributeError):
        return "this version of JAX hides its cuDNN attention elsewhere"
    except RuntimeError as error:
        return f'{error} A machine with an NVIDIA GPU and pip install "jax[cuda13]" have it.'
    return None


def cudnn_attention(
    q: Float[Array, "BN 1 T H"],
    k: Float[Array, "BN 1 S H"],
    v: Float[Array, "BN 1 S H"],
    lengths: Int[Array, " BN"] | None,
) -> tuple[Float[Array, "BN 1 T H"], Float[Array, "BN 1 T"]]:
    """cuDNN's attention over the first ``lengths`` keys, and its log-sum-exp in float32."""
    # Not jax.nn.dot_product_attention: that rounds the log-sum-exp to q's dtype. In bfloat16 it
    # is then off by 3 %, and with it the weights of the parts that `merge` joins.
    cudnn = _cudnn_module()
    masked = {}
    if lengths is not None:
        num_queries = jnp.full_like(lengths, q.shape[2])
        masked = {"q_seqlen": num_queries, "kv_seqlen": lengths}
    return cudnn.dot_product_attention(
        q, k, v, scale=q.shape[-1] ** -0.5, qkv_layout="BNTH", return_residual=True,
        mask_type=cudnn.MaskType.NO_MASK if lengths is None else cudnn.MaskType.PADDING,
        **masked,
    )  # fmt: skip


def attention(q: Heads, keys: Keys, fused: FusedAttention = cudnn_attention) -> AttentionPart:
    """The fused attention, for what `reason_against` has nothing against.

    The log-sum-exp stands in for the maximum, with denominator 1.
    """
    batch, num_heads, num_queries, head_dim = q.shape
    k, v = _in_front(keys.k, keys), _in_front(keys.v, keys)
    lengths = None
    if keys.slots is not None or keys.lengths is not None:
        lengths = jnp.sum(keys.run_lengths(), axis=-1, dtype=jnp.int32)
        lengths = jnp.broadcast_to(lengths, (batch, num_heads))
        # A padded key has weight 0, but 0 * NaN is NaN.
        number = jnp.arange(keys.num_keys, dtype=jnp.int32)[None, None, :, None]
        k, v = (jnp.where(number < lengths[..., None, None], x, 0).astype(x.dtype) for x in (k, v))
    fold = lambda x: x.reshape(batch * num_heads, 1, *x.shape[2:])
    # No promise is known of what cuDNN does without any key, so it always gets one.
    given = None if lengths is None else jnp.maximum(lengths.reshape(-1), 1)
    out, log_sum = fused(fold(q), fold(k), fold(v), given)
    out = out.reshape(q.shape).astype(jnp.float32)
    log_sum = log_sum.reshape(q.shape[:3]).astype(jnp.float32)
    if lengths is None:
        return AttentionPart(out, log_sum, jnp.ones_like(log_sum))
    sees = (lengths > 0)[..., None]
    return AttentionPart(
        out=jnp.where(sees[..., None], out, jnp.float32(0)),
        max=jnp.where(sees, log_sum, jnp.finfo(jnp.float32).min),
        denominator=jnp.broadcast_to(sees, log_sum.shape).astype(jnp.float32),
    )


def _in_front(stored: Array, keys: Keys) -> Heads:
    """One layer's keys or values [B, N, S, H], those of slots that count first."""
    if keys.layer is None and keys.slots is None:
        return stored
    stack = stored if keys.layer is not None else stored[None]
    layer = jnp.zeros((), jnp.int32) if keys.layer is None else keys.layer
    if keys.slots is None:
        return jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)
    _, batch, num_heads, num_keys, head_dim = stack.shape
    order = jnp.argsort(~keys.slots, axis=-1, stable=True)
    shape = (batch, num_heads, keys.num_runs)
    order = jnp.broadcast_to(order, shape)
    video, head, _ = jnp.meshgrid(*map(jnp.arange, shape), indexing="ij")
    runs = stack.reshape(-1, *shape, keys.run_size, head_dim)
    return runs[layer, video, head, order].reshape(batch, num_heads, num_keys, head_dim)


def _cudnn_module():
    return importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
