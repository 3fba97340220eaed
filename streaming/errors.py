"""Errors that several folders of the server raise and the HTTP routes answer."""


class Unavailable(Exception):
    """The server cannot do this now; the text says why. Worth trying again."""
