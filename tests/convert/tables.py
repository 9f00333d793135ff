"""What every table of rules must keep."""

import re
from collections.abc import Iterable, Sequence

from checkpoints_convert.rules import Rule


def assert_each_rule_serves(rules: Sequence[Rule], names: Iterable[str]) -> None:
    """Every rule matches some name of the model, and every name exactly one rule."""
    hits = dict.fromkeys(range(len(rules)), 0)
    for name in names:
        matching = [i for i, rule in enumerate(rules) if re.fullmatch(rule.pattern, name)]
        assert len(matching) == 1, name
        hits[matching[0]] += 1
    assert all(hits.values())
