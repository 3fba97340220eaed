"""What is not meant, and corrections: "not a boat but a car", "red, no, blue"."""

from __future__ import annotations

# Ways to say {0} and that {1} is not meant; {2} is not meant either.
REJECTING = (
    "not {1} but {0}", "{0}, not {1}", "{0} instead of {1}", "{0} (not {1})", "{0} and not {1}", "not {1}: {0}",
    "{0} rather than {1}", "rather {0} than {1}", "{1}? no, {0}", "{1}... no, {0}", "{1}, no, {0}", "{0}, never {1}",
    "never {1}, {0}", "neither {1} nor {2} but {0}", "not {1}, not {2}, but {0}", "not {1} or {2}, {0}",
    "{0} but not {1}",
    "{1}, i mean {0}", "{1} - sorry, {0}", "{1}, or rather {0}", "not {1}! {0}", "no {1}, {0}", "{0}, no {1}",
    "no {1}; {0}",
    "no longer {1}, now {0}", "anything but {1}: {0}", "{0} in place of {1}", "instead of {1}, {0}",
    "{0}, definitely not {1}",
    "{0}, neither {1} nor {2}", "not {1}, {0}", "isn't {1}, it's {0}", "not so much {1} as {0}", "{0} without {1}",
)  # fmt: skip
# A sentence {1} and a thing {0} that is not meant.
NOT_THIS = (
    "not a {0}, {1}", "not a {0} but {1}", "{1}, not a {0}", "no {0}, {1}", "instead of a {0} {1}",
    "{1} instead of a {0}",
    "don't show a {0}. show {1}", "{1}, without any {0}", "{1} and no {0}", "i don't want a {0}, i want {1}",
    "a {0}? no, {1}", "{1}, never a {0}", "i said {1}, not a {0}", "there is no {0}, just {1}",
    "no {0} please, only {1}",
    "nothing with a {0}, {1}", "rather {1} than a {0}", "forget the {0}: {1}", "{1} rather than a {0}",
    "this is not a {0}, it is {1}", "not the {0}! {1}", "no more {0}, now {1}", "there isn't any {0}, only {1}",
    "{1} (no {0})", "i am tired of the {0}, show {1}", "no {0} here. {1}", "a {0}... no, {1}", "a {0}, i mean {1}",
    "instead of the {0}, {1}", "anything but a {0}: {1}", "{1}, but no {0}", "{1} with no {0} around",
    "not one {0}, but {1}",
    "we have seen the {0}, now {1}", "replace the {0} by {1}", "remove the {0}, show {1}", "where was a {0}, {1}",
)  # fmt: skip
# The same of a movement: {1} is what it does, {0} what it does not.
NOT_DOING = (
    "does not {0}, it {1}", "doesn't {0} but {1}", "does not {0}; it {1}", "{1}, it does not {0}", "never {0}, {1}",
    "{1} and does not {0}", "should not {0}, it {1}", "must not {0} but {1}", "{1} and never {0}", "won't {0}, it {1}",
    "which doesn't {0}, it {1}", "that does not {0} but {1}", "{1} rather than {0}", "can't {0}, so it {1}",
)  # fmt: skip
