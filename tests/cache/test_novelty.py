import jax.numpy as jnp
import numpy as np
import pytest

from vidcache_jax.cache import novelty


def test_a_frames_pooled_key_is_the_mean_of_its_tokens():
    k = jnp.array([[[[1.0, 2.0], [3.0, 4.0], [10.0, 0.0], [0.0, 10.0]]]])
    assert novelty.pooled_keys(k, 2).tolist() == [[[[2.0, 3.0], [5.0, 5.0]]]]


def test_similarity_is_a_flat_mean_over_the_memory_heads_of_all_layers():
    """Two layers of two heads; layer 0 has two memory heads, layer 1 one."""
    east, north, west = (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)
    nan = (np.nan, np.nan)
    # The second frame is east, north; west (and a head that plays another role).
    first, second = [[east, east], [east, nan]], [[east, north], [west, nan]]
    pooled = jnp.array([first, second]).transpose(1, 2, 0, 3)[:, None]
    similar = novelty.similarity(pooled, jnp.array([[True, True], [True, False]]))
    # Cosines 1, 0 and -1. A mean of the layers' means would be (0.5 - 1) / 2.
    assert similar.tolist() == [[[1.0, 0.0], [0.0, 1.0]]]


def test_the_cosine_with_a_zero_vector_is_zero():
    pooled = jnp.array([[[[[0.0, 0.0], [3.0, 4.0]]]]])
    assert novelty.similarity(pooled, jnp.array([[True]])).tolist() == [[[0.0, 0.0], [0.0, 1.0]]]


@pytest.mark.parametrize(
    ("to_entries", "held", "is_novel"),
    [
        ([0.2, 0.94, 0.5], [True] * 3, True),
        ([0.2, 0.96, 0.5], [True] * 3, False),
        ([0.2, 0.96, 0.5], [True, False, True], True),
        ([0.5, 0.5, 0.5], [True] * 3, True),
        ([np.float32(0.95)] * 3, [True] * 3, False),  # strictly below
        ([1.0, 1.0, 1.0], [False] * 3, True),  # empty memory admits
    ],
)
def test_new_is_what_is_unlike_every_entry(to_entries, held, is_novel):
    new = novelty.is_novel(jnp.array([to_entries]), jnp.array([held]), 0.95)
    assert new.tolist() == [is_novel]


@pytest.mark.parametrize(
    ("entry", "summary", "slots"),
    [([3, 12, 21], -1, [0, 1, 2]), ([30, 12, 21], 1, [1, 2, 0]), ([30, 21, 12], 0, [0, 2, 1])],
)
def test_the_summary_comes_first_then_frames_in_order(entry, summary, slots):
    assert novelty.in_time(jnp.array([entry]), jnp.array([summary])).tolist() == [slots]


def symmetric(size, **pairs):
    """Similarity 0 but for the given pairs, as ``_01=0.5``."""
    similar = np.eye(size, dtype=np.float32)
    for name, value in pairs.items():
        i, j = int(name[1]), int(name[2])
        similar[i, j] = similar[j, i] = value
    return jnp.asarray(similar)[None]


@pytest.mark.parametrize(
    ("similar", "pair"),
    [
        (symmetric(4, _01=0.3, _13=0.9, _23=0.8), (1, 3)),
        (symmetric(4, _12=0.9, _03=0.9, _02=0.1), (0, 3)),  # of equals, the lowest
        (symmetric(3, _01=-0.5, _02=-0.2, _12=-0.9), (0, 2)),
        (symmetric(2, _01=-1.0), (0, 1)),
    ],
)
def test_the_first_to_merge_are_the_most_alike(similar, pair):
    i, j = novelty.closest_pair(similar)
    assert (i.tolist(), j.tolist()) == ([pair[0]], [pair[1]])


@pytest.mark.parametrize(
    ("similar", "entry"),
    [
        (symmetric(4, _12=0.2, _23=0.8), 3),
        (symmetric(5, _12=0.2, _23=0.8, _34=0.9), 4),
        (symmetric(5, _12=0.8, _23=0.9, _34=0.2), 2),  # 0.8, 0.85, 0.55, 0.2
        (symmetric(5, _13=0.9, _24=0.9), 1),  # only neighbours count; of equals, the first
        (symmetric(4, _01=0.9, _12=0.1, _23=0.3), 3),  # the summary is no neighbour
        (symmetric(2, _01=0.9), 1),
    ],
)
def test_the_next_to_merge_is_most_like_its_neighbours(similar, entry):
    assert novelty.most_redundant(similar).tolist() == [entry]
