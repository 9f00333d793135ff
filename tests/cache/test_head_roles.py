import numpy as np
import pytest

from vidcache_jax.cache import HeadRoles

TABLE = (("local", "memory"), ("anchor", "memory"), ("memory", "memory"))


def test_a_file_gives_back_the_table(tmp_path):
    roles = HeadRoles(TABLE, "abc")
    roles.save(tmp_path / "roles.json", {"prompts": ["a red circle"]})
    assert HeadRoles.load(tmp_path / "roles.json") == roles
    assert [path.name for path in tmp_path.iterdir()] == ["roles.json"]


def test_numbers_and_back():
    roles = HeadRoles(TABLE)
    assert roles.shape == (3, 2)
    assert roles.numbers.tolist() == [[0, 2], [1, 2], [2, 2]]
    assert HeadRoles.from_numbers(roles.numbers) == roles


def test_allocations_of_the_papers_table_5():
    roles = HeadRoles(TABLE, "abc")
    assert roles.replaced("anchor", "memory").table[1] == ("memory", "memory")
    assert HeadRoles.uniform("memory", 2, 3).table == (("memory",) * 3,) * 2
    shuffled = roles.shuffled(seed=1)
    assert shuffled != roles and shuffled == roles.shuffled(seed=1)
    counts = lambda table: np.bincount(table.numbers.ravel(), minlength=3).tolist()
    assert counts(shuffled) == counts(roles) == [1, 1, 4]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ((), "at least one layer"),
        (((),), "at least one layer and one head"),
        ((("local",), ("local", "local")), r"unequal numbers of heads: \[1, 2\]"),
        ((("local", "sink"),), r"unknown roles \['sink'\].*'anchor'"),
    ],
)
def test_impossible_tables_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        HeadRoles(table)


def test_another_models_table_is_refused():
    HeadRoles(TABLE, "abc").check_model("abc")
    HeadRoles(TABLE).check_model("abc")
    with pytest.raises(ValueError, match="fingerprint abc, this one has def: profile this model"):
        HeadRoles(TABLE, "abc").check_model("def")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "roles.json holds no role table"),
        ('{"fingerprint": null}', "roles.json holds no role table: no 'roles'"),
        ('{"roles": ["local"]}', "no 'fingerprint'"),
        ('{"roles": [1], "fingerprint": null}', "holds no role table"),
        ('{"roles": ["local elephant"], "fingerprint": null}', "unknown roles"),
        ("[]", "holds no role table"),
    ],
)
def test_a_file_that_holds_none_is_refused(tmp_path, content, message):
    (tmp_path / "roles.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        HeadRoles.load(tmp_path / "roles.json")
