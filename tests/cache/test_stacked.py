import jax.numpy as jnp
import numpy as np

from vidcache_jax.cache.stacked import put_slots, take_slots

STORED = np.arange(2 * 2 * 1 * 6 * 1, dtype=np.float32).reshape(2, 2, 1, 6, 1)
"""Two layers of two videos with three slots of two rows: 0 ... 5, 6 ... 11 | 12 ... 17, ..."""
LAYER, SLOTS = jnp.int32(1), jnp.array([[2, 0], [1, 1]])


def test_each_videos_slots_are_taken_in_their_order():
    taken = take_slots(jnp.asarray(STORED), LAYER, SLOTS, 2)
    assert taken[:, 0, :, 0].tolist() == [[16, 17, 12, 13], [20, 21, 20, 21]]


def test_what_is_put_is_what_is_taken_and_nothing_else_changes():
    new = -jnp.arange(8, dtype=jnp.float32).reshape(2, 1, 4, 1)
    stored = put_slots(jnp.asarray(STORED), LAYER, SLOTS, new)
    assert stored[0].tolist() == STORED[0].tolist()
    # The second write to a slot is the one that stays.
    assert stored[1, :, 0, :, 0].tolist() == [[-2, -3, 14, 15, 0, -1], [18, 19, -6, -7, 22, 23]]
