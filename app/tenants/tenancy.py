"""Whose call it is: the tenant that has the number, or the built-in one while there are no tenants at all.

Refuses to know where tenants are kept.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import replace

from app.call.plan import Plan
from app.tenants.directory import TenantDirectory
from app.tenants.fields import DEFAULT

TEST_NUMBER_PREFIX = "test:"
"""With the name of a zone: a number for test calls, which no tenant needs to have and no telephone can dial.
Twilio writes E.164, `sip:` or `client:`, so such a call comes from somebody who has our Twilio auth token."""

COPY_WAIT_S = 10.0
"""A new machine has no copy of the tenants yet, and would greet their callers as the built-in tenant: so long it
sends calls elsewhere. Then it takes them, for the database may be down for everybody; but not where a zone
promises something, see `Tenancy`."""


class Tenancy:
    """Answers at once, from memory.

    Fail closed: a number that could not be looked up may be a tenant's of a zone that promises something, and the
    built-in tenant promises nothing. So it answers only once it is known that there are no tenants, unless no call
    of such a zone could be taken anyway.
    """

    def __init__(
        self,
        directory: TenantDirectory,
        builtin: Plan,
        *,
        copy_comes: bool,
        promised: bool = False,
        current: Callable[[], bool] = lambda: True,
        test_zones: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`copy_comes`: tenants are in a database whose copy is being made.

        `promised`: calls of a zone that promises something can be taken. `current`: whether the copy is as new as
        the database; one that is being made shows the past first, when there may have been no tenants.

        `test_zones`: those that have a test number.
        """
        self._directory = directory
        self._builtin = builtin
        self._copy_comes = copy_comes
        self._promised = promised
        self._current = current
        # A tenant of its own, so that its calls can be told from others in the records.
        self._tests = {
            TEST_NUMBER_PREFIX + zone: replace(builtin, tenant=TEST_NUMBER_PREFIX + zone, zone=zone)
            for zone in test_zones
        }
        self._clock = clock
        self._began_at = clock()
        self._there_are_none = False

    def plan_for(self, number: str) -> Plan | None:
        """By the dialled number; None when it is nobody's, its tenant cannot be used, or nobody knows."""
        plan = self._tests.get(number) or self._directory.plan_for(number)
        if plan is not None or self._directory.known:
            return plan
        return self._builtin if not self._promised or self._sure else None

    def is_broken(self, number: str) -> bool:
        """True for the number of a tenant that cannot be used."""
        return self._directory.is_broken(number)

    def plan_of(self, tenant: str) -> Plan | None:
        """By the tenant's name; None when there is none that can be used."""
        if tenant == DEFAULT:
            return self._builtin
        return self._tests.get(tenant) or self._directory.plan_of(tenant)

    @property
    def trouble(self) -> str | None:
        """What is wrong with the tenants that are kept; None when nothing is."""
        return self._directory.trouble

    @property
    def settled(self) -> bool:
        """False after the start, while nobody knows yet whether there are tenants."""
        if self._promised:
            return self._directory.known or self._sure
        waited_s = self._clock() - self._began_at
        return self._directory.read or not self._copy_comes or waited_s > COPY_WAIT_S

    @property
    def _sure(self) -> bool:
        """True once it was seen that there were no tenants. Later ones are seen as they come."""
        if not self._there_are_none and self._directory.read and not self._directory.known:
            self._there_are_none = not self._copy_comes or self._current()
        return self._there_are_none
