"""A call that is to move to another machine: by when, and what is known of it once it does."""

from dataclasses import dataclass

from app.call.limits import NEVER


@dataclass(slots=True)
class Move:
    """The move of one call."""

    by: float
    """The latest instant at which it begins, whoever speaks."""
    quiet_since: float = NEVER
    """Since when nobody speaks and nothing is awaited."""
    accepted: bool = False
    """Twilio has taken the redirect."""
    phone_gone: bool = False
    """Twilio's stream has ended. That says nothing about the redirect: the caller may have hung up."""
    stop_by: float = NEVER
    """When Twilio should have ended the stream."""

    def note(self, now: float, *, quiet: bool) -> None:
        """Note whether anybody speaks, or anything is awaited."""
        if not quiet:
            self.quiet_since = NEVER
        elif self.quiet_since == NEVER:
            self.quiet_since = now
