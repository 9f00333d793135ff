"""Compiled programs kept between runs, so that the second run starts faster."""

from pathlib import Path

import jax


def enable_compilation_cache(folder: Path) -> None:
    """Lets JAX keep every compiled program in ``folder``."""
    if jax.distributed.is_initialized() and jax.default_backend() == "cpu":
        # On CPUs the first process alone finds anything in it (seen with jax 0.10.2). It would be
        # ahead of the others, for longer than the 30 s that gloo waits for them.
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.expanduser()))
    # The chunk program of a small model compiles faster than JAX's default threshold.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
