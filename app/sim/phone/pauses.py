"""Finds the pauses in what the caller heard: the silences after the agent began to speak.

Pure: 8 kHz mu-law goes in, as `Phone.heard_audio` returns it, and pauses come out. Silence between two streams of
one call counts, so a test can assert how long a caller waited while the call moved to another backend or Machine.
"""

from dataclasses import dataclass

from app.sim.phone.audio import BLOCK_BYTES, BLOCK_MS, is_loud


@dataclass(frozen=True, slots=True)
class Pause:
    """A silence, in milliseconds from the beginning of the audio."""

    start_ms: int
    """The end of the last loud 20 ms before it."""
    end_ms: int
    """The beginning of the next loud 20 ms, or the end of the audio."""
    resumed: bool
    """True when the agent spoke again afterwards."""

    @property
    def ms(self) -> int:
        return self.end_ms - self.start_ms


def pauses(heard: bytes, *, longer_than_ms: int) -> tuple[Pause, ...]:
    """All silences longer than `longer_than_ms` after the agent's first sound, in order.

    The silence after the last sound counts too, with `resumed` False: a dead agent must not pass for one without
    pauses. The silence before the first sound does not count, and audio without any sound has no pauses.
    """
    found: list[Pause] = []
    silent_since_ms: int | None = None  # None: the agent has not spoken yet
    for start in range(0, len(heard) - BLOCK_BYTES + 1, BLOCK_BYTES):
        if not is_loud(heard[start : start + BLOCK_BYTES]):
            continue
        start_ms = start // BLOCK_BYTES * BLOCK_MS
        if silent_since_ms is not None and start_ms - silent_since_ms > longer_than_ms:
            found.append(Pause(silent_since_ms, start_ms, resumed=True))
        silent_since_ms = start_ms + BLOCK_MS
    end_ms = len(heard) * BLOCK_MS // BLOCK_BYTES
    if silent_since_ms is not None and end_ms - silent_since_ms > longer_than_ms:
        found.append(Pause(silent_since_ms, end_ms, resumed=False))
    return tuple(found)
