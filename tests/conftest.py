"""Settings of every test: eight CPU devices, nothing implicit, nothing random.

That annotated shapes and types are checked too, and warnings are errors, is set in pyproject.toml.
"""

import hypothesis
import jax
import pytest

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


@pytest.fixture(scope="module", autouse=True)
def _programs_of_a_file_go_with_it():
    """All programs of all files together would take several gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def quick():
    """For files whose programs run for a second: machine code unoptimised, compiled sooner."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest first, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
