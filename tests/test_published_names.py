"""Published names of weights."""

from __future__ import annotations

import pytest

from engine.loading.published_names_semantic import PLANNER, THEIA, TOKENIZER, Rules, to_ours, to_published


def test_groups_may_change_places() -> None:
    """A rule whose groups stand in another order on our side also reads backwards."""
    rules = ((r"(\d+)\.(weight|bias)", r"\2.of.\1"),)
    assert to_ours("3.bias", rules) == "bias.of.3"
    assert to_published("bias.of.3", rules) == "3.bias"


def test_a_rule_that_loses_a_group_is_refused() -> None:
    """A rule that could not be read backwards raises."""
    with pytest.raises(ValueError, match="no inverse"):
        to_published("layer.weight", ((r"layer\.(\d+)\.weight", r"layer.weight"),))


@pytest.mark.parametrize("rules", [TOKENIZER, PLANNER, THEIA])
def test_unknown_names_are_refused(rules: Rules) -> None:
    """A tensor that no rule knows raises with its name, both ways."""
    for translate in (to_ours, to_published):
        with pytest.raises(KeyError, match="surprise"):
            translate("surprise.weight", rules)
