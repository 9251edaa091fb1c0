"""Keeps calls going: each of a few slots places one call after the other, until the run has enough."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from app.sim.phone.options import PhoneOptions
from app.sim.phone.twilio_rest import TwilioRest
from scripts.survivelib.agent import SLOT, Agent
from scripts.survivelib.caller import Caller, caller, region_of
from scripts.survivelib.story import Fault, Story

VAD_SILENCE_MS = 300


def tenants(slots: int) -> str:
    """Returns the document with a tenant for each slot."""
    return "\n".join(
        f'[tenants.{SLOT}{slot}]\nnumbers = ["{number(slot)}"]\nmodel = "{SLOT}{slot}"\ngreeting = "Hello."\n'
        f"vad_silence_ms = {VAD_SILENCE_MS}\n"
        for slot in range(slots)
    )


def number(slot: int) -> str:
    """Returns the number that the calls of a slot dial."""
    return f"+1202555{slot:04}"


@dataclass(slots=True)
class Traffic:
    """The calls of a run."""

    agent: Agent
    rest: TwilioRest
    chance: random.Random
    options: Callable[[int], PhoneOptions]
    """What a slot's phone is, but for the number."""
    sentences: tuple[int, int]
    """How many the caller says: between these two."""
    patience_s: float
    labels: Sequence[str] = ()
    """By slot."""
    finished: list[Story] = field(default_factory=list)
    live: dict[int, Caller] = field(default_factory=dict)
    """By slot."""
    _made: int = 0
    _enough: bool = False

    async def run(self, slots: int) -> None:
        """Places calls until `stop`; returns when the last of them is over."""
        async with asyncio.TaskGroup() as tasks:
            for slot in range(slots):
                tasks.create_task(self._again(slot))

    def stop(self) -> None:
        """Places no more calls. Those under way go on to their end."""
        self._enough = True

    def callers_in(self, region: str) -> list[Caller]:
        """Returns the calls that have their stream in a region now."""
        return [each for each in self.live.values() if region_of(each.phone) == region]

    def hurt(self, region: str, what: str, *, unplaced: bool) -> list[Caller]:
        """Notes a fault of a region with its calls, and returns these.

        `unplaced`: it is also noted with the calls that have no stream at the moment, for they may be there.
        """
        now = asyncio.get_running_loop().time()
        there = self.callers_in(region)
        nowhere = [each for each in self.live.values() if not region_of(each.phone)] if unplaced else []
        for each in (*there, *nowhere):
            each.story.faults.append(Fault(now, what))
        return there

    async def _again(self, slot: int) -> None:
        # Not all at once: a region's calls are in different phases then.
        await asyncio.sleep(self.chance.uniform(0, 2))
        while not self._enough:
            self._made += 1
            story = Story(self._made & 0xFFF, label=self.labels[slot] if self.labels else "")
            one = caller(story, replace(self.options(slot), to=number(slot)), self.rest, self.patience_s)
            self.agent.stories[slot] = story
            async with one.phone:
                self.live[slot] = one
                try:
                    await one.talk(self.chance.randint(*self.sentences), self.chance)
                finally:
                    del self.live[slot]
            self.finished.append(story)
