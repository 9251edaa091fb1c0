"""The result of a run, as a table for people and as JSON for machines."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scripts.survivelib.story import Story, timeline
from scripts.survivelib.verdict import PROMISES, Broken, Promises, judge, longest_s, pauses

TOLD_MAX = 10
"""Timelines that are printed. The others are in the JSON."""

MEANING = {
    "dropped": "calls that ended before the caller hung up",
    "answered": "sentences without an answer to its end",
    "pauses": "callers with more pauses than promised",
    "pause": "pauses that were longer than promised",
    "lost": "answers with words that were passed over",
    "doubled": "answers of which words were heard twice",
    "one agent": "calls in which a replaced agent was heard again",
    "ledger": "turns that the ledger lacks, or has twice",
    "history": "sessions that did not know the call so far",
    "tools": "tools that ran more than once",
}


@dataclass(slots=True)
class Report:
    """The calls of a run and its verdict."""

    run: str
    seed: int
    promises: Promises
    stories: Sequence[Story]
    faults: Counter[str] = field(default_factory=Counter)
    """What was broken on purpose."""
    problems: list[str] = field(default_factory=list)
    """What went wrong apart from the calls, a line each."""
    needed: int = 0
    """How many faults have to have hit a call: with fewer, nothing was tried."""

    @property
    def hits(self) -> int:
        """How often a fault hit a call under way."""
        return sum(len(story.faults) for story in self.stories)

    @property
    def broken(self) -> list[Broken]:
        """Every promise that was not kept."""
        return [each for story in self.stories for each in judge(story, self.promises)]

    @property
    def all_problems(self) -> list[str]:
        """What went wrong apart from the calls, with a run that tried too little."""
        few = self.hits < self.needed
        return [*self.problems, *([f"only {self.hits} faults hit a call, {self.needed} were to"] if few else [])]

    @property
    def good(self) -> bool:
        """True when enough was tried and every promise was kept."""
        return not self.broken and not self.all_problems

    def figures(self) -> Mapping[str, float]:
        """Returns what was measured."""
        waits = sorted(each for story in self.stories for each in longest_s(story, self.promises))
        noticed = [len(pauses(story, self.promises)) for story in self.stories]
        over = sorted(s for story in self.stories for _, s in pauses(story, self.promises))
        return {
            "calls": len(self.stories),
            "faults that hit a call": self.hits,
            "sentences": sum(len(story.sentences) for story in self.stories),
            "legs": sum(len(story.legs) for story in self.stories),
            "callers who noticed a pause": sum(count > 0 for count in noticed),
            "callers who noticed several": sum(count > 1 for count in noticed),
            "longest pause noticed, s": round(over[-1], 2) if over else 0.0,
            "median wait because of a fault, s": round(waits[len(waits) // 2], 2) if waits else 0.0,
            "longest wait because of a fault, s": round(waits[-1], 2) if waits else 0.0,
        }

    def as_json(self) -> str:
        """Returns everything, timelines of calls with a broken promise included."""
        stories = {story.call: story for story in self.stories}
        return json.dumps(
            {
                "run": self.run,
                "seed": self.seed,
                "good": self.good,
                "faults": dict(self.faults),
                "figures": dict(self.figures()),
                "problems": self.all_problems,
                "broken": [
                    {
                        "promise": each.promise,
                        "call": each.call,
                        "call_sid": stories[each.call].call_sid,
                        "detail": each.detail,
                        "timeline": timeline(stories[each.call]),
                    }
                    for each in self.broken
                ],
            },
            indent=2,
        )

    def as_text(self) -> str:
        """Returns the table, a line for each broken promise, and the timelines of the first calls."""
        broken = self.broken
        counts = Counter(each.promise for each in broken)
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items())) or "none"
        lines = ["", f"scripts/survive {self.run}, seed {self.seed}", f"Broken on purpose: {faults}", ""]
        lines += [f"  {value:8g}  {name}" for name, value in self.figures().items()]
        lines += ["", "Promises"]
        lines += [
            f"  {counts[each] or 'kept':>8}  {MEANING[each]}{': BROKEN' if counts[each] else ''}"
            for each in PROMISES
        ]
        lines += ["", *(f"  {each}" for each in self.all_problems)]
        lines += [f"  {each.promise}: call {each.call}: {each.detail}" for each in broken]
        hit = list(dict.fromkeys(each.call for each in broken))
        for story in [story for story in self.stories if story.call in hit[:TOLD_MAX]]:
            lines += ["", f"Call {story.call} {story.label} ({story.call_sid})", *timeline(story)]
        if len(hit) > TOLD_MAX:
            lines += ["", f"--json has the timelines of {len(hit) - TOLD_MAX} more calls."]
        return "\n".join([*lines, "", "All promises were kept." if self.good else "Promises were broken.", ""])
