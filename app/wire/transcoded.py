"""A backend that is spoken to in PCM, as the rest of the server sees it: in mu-law, like every other.

Stands around the backend's own dialect, for one call. Milliseconds stay true: of an item, mu-law byte k is the
backend's audio at k/8000 s, so that what the core counts as heard is what the backend is told, and never more than
it made. Filters are in pcm.py, and vendors' words in their own modules.
"""

from binascii import a2b_base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from app.call.events import AddTurn, AgentAudio, AgentAudioEnded, Event, ResponseEnded
from app.call.plan import Abilities, Plan
from app.wire.dialect import Address, BackendCommand, Dialect
from app.wire.formats import AudioFormat
from app.wire.pcm import FromMulaw, ToMulaw
from app.wire.text import Message, base64_of, bytes_of

ITEMS_MAX = 2
"""The item that is spoken, and one that a barge-in cut off and of which late pieces may come in between."""


@dataclass(frozen=True, slots=True)
class _Item:
    response_id: str
    mulaw: ToMulaw


class Transcoded:
    """The dialect of one call whose backend takes and sends PCM."""

    __slots__ = ("_caller", "_dialect", "_items", "_rate_hz")

    def __init__(self, dialect: Dialect, audio_format: AudioFormat) -> None:
        self._dialect = dialect
        self._rate_hz = audio_format.rate_hz
        self._caller = FromMulaw(self._rate_hz)
        self._items: dict[str, _Item] = {}
        """By their ids, the latest heard of last."""

    @property
    def items(self) -> list[str]:
        """The items whose conversion may go on, the latest heard of last."""
        return [*self._items]

    @property
    def name(self) -> str:
        """See Dialect."""
        return self._dialect.name

    @property
    def abilities(self) -> Abilities:
        """See Dialect."""
        return self._dialect.abilities

    def fitted(self, plan: Plan) -> Plan:
        """See Dialect."""
        return self._dialect.fitted(plan)

    def address(self, model: str) -> Address:
        """See Dialect."""
        return self._dialect.address(model)

    def render(self, command: BackendCommand) -> bytes:
        """See Dialect. The caller's audio in an item is no part of the stream that `append` converts."""
        if isinstance(command, AddTurn) and command.audio:
            mulaw = b"".join(map(a2b_base64, command.audio))
            pcm = FromMulaw(self._rate_hz).convert(mulaw)
            return self._dialect.render(replace(command, audio=(base64_of(pcm),)))
        return self._dialect.render(command)

    def append(self, payload: str) -> bytes:
        """See Dialect. The caller's audio is one stream from the call's first frame to its last.

        It is base64: twilio.py has looked, or we have made it.
        """
        return self._dialect.append(base64_of(self._caller.convert(a2b_base64(payload))))

    def parse(self, message: Message) -> Sequence[Event]:
        """See Dialect."""
        return [event for heard in self._dialect.parse(message) for event in self._in_mulaw(heard)]

    def _in_mulaw(self, event: Event) -> Iterator[Event]:
        match event:
            case AgentAudio():
                pcm = bytes_of(event.payload)
                yield from self._audio(event, self._item(event).convert(pcm))
                return
            case AgentAudioEnded():
                item = self._items.pop(event.item_id, None)
                if item is not None:
                    rest = AgentAudio(event.response_id, event.item_id, "", 0)
                    yield from self._audio(rest, item.mulaw.flush())
            case ResponseEnded():
                # What did not end by now never will; a rest of it would come after the core has settled it.
                for item_id in [id_ for id_, item in self._items.items() if item.response_id == event.response_id]:
                    del self._items[item_id]
        yield event

    def _item(self, event: AgentAudio) -> ToMulaw:
        item = self._items.pop(event.item_id, None) or _Item(event.response_id, ToMulaw(self._rate_hz))
        self._items[event.item_id] = item
        if len(self._items) > ITEMS_MAX:
            del self._items[next(iter(self._items))]
        return item.mulaw

    @staticmethod
    def _audio(event: AgentAudio, mulaw: bytes) -> Iterator[AgentAudio]:
        """A piece of no length is none: the filter has not got enough to make a sample of."""
        if mulaw:
            yield replace(event, payload=base64_of(mulaw), audio_bytes=len(mulaw))
