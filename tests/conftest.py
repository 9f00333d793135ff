"""Settings of every test: eight CPU devices, nothing implicit, nothing random.

That annotated shapes and types are checked too, and warnings are errors, is set in pyproject.toml.
"""

import hypothesis
import jax

# Must come before anything touches a device.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    # The first example compiles.
    deadline=None,
)
hypothesis.settings.load_profile("repeatable")
