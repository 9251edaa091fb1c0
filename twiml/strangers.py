"""Senders of webhooks without a valid signature: they are refused before their requests cost anything.

Pure: the time is an argument. Does not know how senders are told apart.
"""

from collections import OrderedDict
from typing import TypeVar

REFUSALS_MAX = 20
"""Refusals in one window: more than an operator's own attempts with curl, and too few to cost anything."""

WINDOW_S = 10.0
"""Counted from a sender's first refusal. Short: should it be Twilio after all, little is lost."""

TRUSTED_S = 86_400.0
"""For so long after a signed request its sender is never limited: Twilio's addresses serve its other customers
too, who may send us what they like."""

SENDERS_MAX = 4_096
"""Senders kept of each kind, about 0.5 MB. The oldest are forgotten first."""


class Strangers:
    """Refused requests by sender, and the senders that are Twilio."""

    def __init__(self) -> None:
        self._refused: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """Sender to the window's start and the refusals in it."""
        self._trusted: OrderedDict[str, float] = OrderedDict()
        """Sender to its last signed request."""

    def limited(self, sender: str, now_s: float) -> bool:
        """True while this sender has been refused too often."""
        return self._count(sender, now_s) >= REFUSALS_MAX and not self._is_trusted(sender, now_s)

    def refused(self, sender: str, now_s: float) -> bool:
        """Note that a request of this sender had no valid signature. True when it is limited from now on."""
        if self._is_trusted(sender, now_s):
            return False
        count = self._count(sender, now_s) + 1
        begun = now_s if count == 1 else self._refused[sender][0]
        _keep(self._refused, sender, (begun, count))
        return count == REFUSALS_MAX

    def signed(self, sender: str, now_s: float) -> None:
        """Note that Twilio signed a request of this sender."""
        self._refused.pop(sender, None)
        _keep(self._trusted, sender, now_s)

    @property
    def refused_senders(self) -> int:
        """How many senders with refused requests are kept."""
        return len(self._refused)

    @property
    def trusted_senders(self) -> int:
        """How many senders of signed requests are kept."""
        return len(self._trusted)

    def _count(self, sender: str, now_s: float) -> int:
        begun, count = self._refused.get(sender, (0.0, 0))
        # A clock that was set back must not make the window longer.
        return count if 0 <= now_s - begun < WINDOW_S else 0

    def _is_trusted(self, sender: str, now_s: float) -> bool:
        last = self._trusted.get(sender)
        return last is not None and now_s - last < TRUSTED_S


_T = TypeVar("_T")


def _keep(kept: "OrderedDict[str, _T]", key: str, value: _T) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > SENDERS_MAX:
        kept.popitem(last=False)
