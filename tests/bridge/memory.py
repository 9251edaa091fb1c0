"""A ledger that says who carries a call, as a test wants it."""

from collections import Counter

from app.call.continuity import Owner, Ownership, Recollection

MINE = Ownership(Owner.THIS_LEG)
OTHERS = Ownership(Owner.ANOTHER_LEG, "epoch 1")
UNKNOWN = Ownership(Owner.UNKNOWN)


class Memory:
    """Answers as the test says, the last answer for ever."""

    def __init__(self, claims: list[Ownership], owners: list[Ownership]) -> None:
        self.claims, self.owners = claims, owners
        self.asked: Counter[str] = Counter()

    async def claim(self, *_: object) -> Ownership:
        self.asked["claim"] += 1
        return self.claims.pop(0) if len(self.claims) > 1 else self.claims[0]

    async def owner(self, *_: object) -> Ownership:
        self.asked["owner"] += 1
        return self.owners.pop(0) if len(self.owners) > 1 else self.owners[0]

    async def recall(self, *_: object) -> Recollection:
        return Recollection()

    async def flush(self, timeout_s: float) -> bool:
        return timeout_s > 0
