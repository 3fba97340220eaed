import dataclasses
import pickle
import typing

import pytest

from engine.wire import messages
from engine.wire.messages import SEED_LIMIT, EngineSettings

SETTINGS = EngineSettings("mini", None, "cpu", "main", "p", 0, 0, 0, 16)


def test_messages_are_frozen_and_survive_the_pipe() -> None:
    """Every message of both directions can be pickled and not be changed."""
    values: dict[typing.Any, typing.Any] = {str: "x", int: 1, float: 0.5, bool: True}
    for kind in (*typing.get_args(messages.ToEngine), *typing.get_args(messages.FromEngine)):
        hints = typing.get_type_hints(kind)
        message = kind(
            **{name: values.get(hint, hint) for name, hint in hints.items() if hint in values}
            | {name: (1, 2) for name, hint in hints.items() if hint == tuple[int, ...]}
            | {name: {"a": 1.0} for name, hint in hints.items() if hint == dict[str, float]}
        )
        assert pickle.loads(pickle.dumps(message)) == message
        assert not hasattr(message, "__dict__")
        for field in dataclasses.fields(message):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(message, field.name, None)


@pytest.mark.parametrize(
    "wrong",
    [{"seed": -1}, {"seed": SEED_LIMIT}, {"first_frame": -1}, {"first_hop": -1}, {"low_mark_frames": 0}],
)
def test_bad_settings_are_refused(wrong: dict[str, int]) -> None:
    """Numbers out of range raise ValueError that names them."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(SETTINGS, **wrong)  # type: ignore[arg-type]
