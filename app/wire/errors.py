"""What is wrong with a message: who sent it, and where it broke. Never holds what was in it."""


class WireError(ValueError):
    """A peer's message that cannot be understood. `str()` is safe to log: no content, no personal data."""
