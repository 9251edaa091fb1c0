"""The model behind the simulated backends: it answers each sentence in its own words, and notes what it knew.

It answers sentence 7 with the words of answer 7, goes on with an answer where it is told that the caller stopped
hearing it, and uses a tool before some answers. What it is asked is noted in the call's story, with the whole
conversation as the session knew it then.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

from app.sim.realtime.reply import FunctionCall, Message, Reply, ReplyRequest, Script
from app.sim.realtime.server import RealtimeServer
from scripts.survivelib.stamps import WORD_FRAMES, Voice, Wording, answer_words, speech, wording_of, words_of
from scripts.survivelib.story import Asked, Story, answer_frames

GREETING_FRAMES = 30
TOOL = "look_up"
SLOT = "slot-"
"""A call dials the number of a tenant of its own, whose model has this name and a number: that tells which call a
session belongs to before the caller has said anything."""


class Agent:
    """The script of all backends, for all calls."""

    def __init__(self, *, tool_every: int = 0) -> None:
        """`tool_every`: a tool is used before each n-th answer; 0: never."""
        self.stories: dict[int, Story] = {}
        """By slot: the calls under way."""
        self._tool_every = tool_every
        self._sessions: dict[tuple[str, int], int] = {}

    def script(self, backend: RealtimeServer) -> Script:
        """Returns what a simulated backend asks for its answers."""

        def answer(request: ReplyRequest) -> Reply:
            story = self.story_of(_model(backend, request.session))
            session = self.session_number(backend, request.session)
            return Reply() if story is None else self._answer(request, story, session)

        return answer

    def story_of(self, model: str) -> Story | None:
        """Returns the call that a session with this model is for; None: for none, as a probe."""
        slot = model.removeprefix(SLOT)
        return self.stories.get(int(slot)) if slot != model else None

    def session_number(self, backend: RealtimeServer, number: int) -> int:
        """Returns a number for this backend's session that no other backend's has, from 1."""
        return self._sessions.setdefault((backend.origin, number), len(self._sessions) + 1)

    def _answer(self, request: ReplyRequest, story: Story, session: int) -> Reply:
        items = tuple(map(_wording, request.history, request.history_mulaw))
        what, voice, sentence, first = _asked_for(request, items)
        calls = _tool_calls(request.history)
        uses_tool = (
            voice is Voice.ANSWER
            and not first
            and self._tool_every
            and sentence % self._tool_every == 0
            and sentence not in calls.values()
        )
        outputs = tuple(
            (calls[item["call_id"]], item["call_id"])
            for item in request.history
            if item["type"] == "function_call_output" and item["call_id"] in calls
        )
        told = "a tool call for" if uses_tool else what
        now = asyncio.get_running_loop().time()
        story.asked.append(Asked(now, session, sentence, told, items, outputs))
        if uses_tool:
            return Reply((FunctionCall(TOOL, orjson.dumps({"sentence": sentence}).decode()),))
        if voice is Voice.ANSWER:
            words = range(first, answer_frames(sentence) // WORD_FRAMES)
            frames = range(first * WORD_FRAMES, answer_frames(sentence))
            text = answer_words(sentence, words)
        else:
            frames, text = range(GREETING_FRAMES), what
        if not frames:
            return Reply()
        return Reply((Message(text, speech(voice, story.call, sentence, session & 0xFFF, frames)),))


def _asked_for(request: ReplyRequest, items: tuple[Wording, ...]) -> tuple[str, Voice, int, int]:
    """Returns what is asked for: in words, as a voice, for which sentence, and from which word on."""
    if request.purpose == "greeting":
        return "the greeting", Voice.GREETING, 0, 0
    if request.purpose in {"idle", "warning", "goodbye", "without_tools"} or request.cause == "idle":
        return f"{request.purpose or 'idle'} words", Voice.OTHER, 0, 0
    if request.purpose == "continue":
        up_to = [
            (sentence, words[-1])
            for wording in (*items, wording_of(request.instructions or ""))
            for sentence, words in wording.agent.items()
        ]
        if up_to:
            sentence, word = up_to[-1]
            return f"the rest, from word {word + 1}, of answer", Voice.ANSWER, sentence, word + 1
    turn = wording_of(request.caller_words).caller
    said = [sentence for _, sentence in turn] or [sentence for item in items for _, sentence in item.caller]
    if said:
        return "answer", Voice.ANSWER, max(said), 0
    return "something, and knows nothing of the call", Voice.OTHER, 0, 0


def _model(backend: RealtimeServer, number: int) -> str:
    return next((each.model for each in backend.sessions if each.number == number), "")


def _wording(item: Mapping[str, Any], mulaw: bytes) -> Wording:
    """Returns what an item says: a turn of the caller may be there as audio alone."""
    if item["type"] != "message":
        return wording_of("")
    if item["role"] == "user" and mulaw:
        return wording_of(words_of(mulaw))
    return wording_of(" ".join(str(part.get("text") or part.get("transcript") or "") for part in item["content"]))


def _tool_calls(history: tuple[Mapping[str, Any], ...]) -> dict[str, int]:
    """Returns the sentence for which each tool call was made."""
    return {
        item["call_id"]: orjson.loads(item["arguments"])["sentence"]
        for item in history
        if item["type"] == "function_call" and item["name"] == TOOL and item["arguments"].endswith("}")
    }
