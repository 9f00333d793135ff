import pytest

from tests.cache.broken_policies import BROKEN, Window
from tests.cache.sound_policies import TokenSets
from vidcache_jax.cache import (
    ISPA,
    POLICIES,
    FullCache,
    FutureForcing,
    HeadForcing,
    HeadRoles,
    SlidingWindow,
    TetherCache,
)
from vidcache_jax.testing import check_policy

CONTRACT = {
    "full": [(FullCache(12), (3, 1, 4))],
    "sliding-window": [
        (SlidingWindow(7, 2), (3, 1, 4)),
        (SlidingWindow(4, 1, rope="absolute"), (1, 3)),
    ],
    "tethercache": [(TetherCache(2, 3, 4), (3, 1, 4))],
    "head-forcing": [
        (HeadForcing(HeadRoles((("local", "memory"), ("memory", "anchor"))), 3), (3, 1)),
    ],
    "future-forcing": [
        (FutureForcing(7, delta_max=2, query_frames=5, tau=0.5, proxy_token_stride=2), (3, 1)),
    ],
    "ispa": [(ISPA(SlidingWindow(7, 2), warmup_frames=12), (3, 1, 4))],
}
"""Policy and the chunk sizes it must serve, for every name in `POLICIES`."""
# They pack tokens of one place from several frames into one frame position.
PACKING = {"head-forcing", "future-forcing"}


def test_every_policy_is_under_contract():
    assert CONTRACT.keys() == POLICIES.keys()
    for name, cases in CONTRACT.items():
        assert all(type(policy) is POLICIES[name] for policy, _ in cases)


@pytest.mark.parametrize(
    "name, policy, chunk_sizes", [(name, *case) for name, row in CONTRACT.items() for case in row]
)
def test_policy_keeps_the_contract(name, policy, chunk_sizes):
    tested = check_policy(
        policy, chunk_sizes=chunk_sizes, distinct_positions=name not in PACKING, examples=3
    )
    assert set(chunk_sizes) <= set(tested)


def test_the_contract_admits_sets_of_tokens_per_head_that_are_merged_and_chosen_over_layers():
    check_policy(TokenSets(), distinct_positions=False, examples=2)


@pytest.mark.parametrize(
    "clause, broken", [(clause, policy) for clause, row in BROKEN.items() for policy in row]
)
def test_a_broken_policy_is_caught_by_its_clause(clause, broken):
    with pytest.raises(AssertionError, match=f"^{clause}: "):
        check_policy(broken(), examples=1)


def test_tokens_of_one_head_that_share_a_position_are_caught_unless_declared():
    with pytest.raises(AssertionError, match="^C2: .* share a position.*distinct_positions=False"):
        check_policy(TokenSets(), examples=1)


def test_a_chunk_size_that_the_caller_states_must_be_served():
    with pytest.raises(AssertionError, match="^C4: init refuses chunks of 4: chunks of 3"):
        check_policy(Window(), chunk_sizes=(3, 4))


def test_one_layer_is_refused():
    with pytest.raises(ValueError, match="num_layers=1 must be at least 2"):
        check_policy(Window(), num_layers=1)
