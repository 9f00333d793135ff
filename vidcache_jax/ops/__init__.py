"""Array operations of the hot path; every one has a plain-JAX definition."""
