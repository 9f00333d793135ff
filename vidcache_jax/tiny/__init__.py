"""The built-in sprite world: videos drawn on the fly, their prompts, and a small codec."""
