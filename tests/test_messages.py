import dataclasses
import pickle
import typing

import pytest

from engine.wire import messages
from engine.wire.settings import ChannelSettings


def test_messages_are_frozen_and_survive_the_pipe() -> None:
    """Every message of both directions can be pickled and not be changed."""
    values: dict[typing.Any, typing.Any] = {
        str: "x",
        int: 1,
        float: 0.5,
        bool: True,
        bytes: b"x",
        tuple[messages.PlannedPart, ...]: (messages.PlannedPart(8, 8, True, {"subject": "fish"}, None),),
        ChannelSettings: ChannelSettings("x"),
        str | None: "x",
    }
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
