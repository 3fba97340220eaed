"""SDP as sections of lines (RFC 8866), and what an answerer reads from them. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")


@dataclass(slots=True)
class SdpSection:
    """One media section, or with an empty kind the session's lines."""

    kind: str = ""  # audio, video, application, ...
    port: int = 0
    protocol: str = ""
    formats: tuple[str, ...] = ()  # payload types
    attributes: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> Iterator[str]:
        """Values of every attribute of that name."""
        return (value for key, value in self.attributes if key == name)

    def first(self, name: str) -> str | None:
        """Value of the first attribute of that name."""
        return next(self.all(name), None)

    def has(self, name: str) -> bool:
        """True if there is an attribute of that name."""
        return self.first(name) is not None

    @property
    def mid(self) -> str | None:
        return self.first("mid")

    @property
    def direction(self) -> str | None:
        return next((key for key, _ in self.attributes if key in DIRECTIONS), None)


def parse(lines: Sequence[str]) -> tuple[SdpSection, list[SdpSection]]:
    """The session's section and the media sections. Raises ValueError for a malformed m= line."""
    sections = [SdpSection()]
    for line in lines:
        if line.startswith("m="):
            words = line[2:].split()
            # A port may be followed by the number of ports.
            if len(words) < 4 or not re.fullmatch(r"[0-9]{1,5}(/[0-9]{1,5})?", words[1]):
                raise ValueError("An m= line is malformed.")
            port = int(words[1].partition("/")[0])
            sections.append(SdpSection(words[0].lower(), port, words[2], tuple(words[3:])))
        elif line.startswith("a="):
            name, _, value = line[2:].partition(":")
            sections[-1].attributes.append((name.strip(), value.strip()))
    return sections[0], sections[1:]


def bundle_of(session: SdpSection, mid: str | None) -> tuple[str, ...]:
    """Mids of the BUNDLE group that holds `mid`, in its order; empty where none does (RFC 9143)."""
    for value in session.all("group"):
        semantics, *mids = value.split() or [""]
        if semantics.upper() == "BUNDLE" and mid in mids:
            return tuple(mids)
    return ()


def parameters(fmtp: str) -> dict[str, str]:
    """Format parameters, by lower-case name; white space around the semicolons does not count."""
    found = {}
    for part in fmtp.split(";"):
        name, equals, value = part.partition("=")
        if equals:
            found[name.strip().lower()] = value.strip()
    return found
