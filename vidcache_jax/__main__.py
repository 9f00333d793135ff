"""``python -m vidcache_jax`` is the ``vidcache`` command."""

import sys

from vidcache_jax.cli import main

sys.exit(main())
