"""The causal video DiT and the codec interface."""
