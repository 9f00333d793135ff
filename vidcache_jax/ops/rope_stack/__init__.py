"""RoPE of all cached keys of all layers at once: the working copy that denoise passes share.

api    the public call and the choice of its implementation
ref    the definition, one layer after the other; everywhere
tpu    a Pallas kernel
table  both by name
check  the kernel against ref on the device at hand
"""

from vidcache_jax.ops.rope_stack.api import rotate_stack as rotate_stack
