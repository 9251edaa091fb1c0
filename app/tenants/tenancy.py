"""Whose call it is: the tenant that has the number, or the built-in tenant while there are no tenants at all.

Does not know where tenants are kept.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from app.call.plan import Plan
from app.tenants.directory import TenantDirectory
from app.tenants.fields import DEFAULT

TEST_NUMBER_PREFIX = "test:"
"""With the name of a zone: a number for test calls, which no tenant needs to have and no telephone can dial.
Twilio writes E.164, `sip:` or `client:`, so such a call comes from somebody who has our Twilio auth token."""

COPY_WAIT_S = 10.0
"""A new machine has no copy of the tenants yet, and would greet their callers as the built-in tenant. For so long
it sends calls elsewhere. Then it takes them, because the database may be down for every machine; but not where a
zone promises something, see `Tenancy`."""


class Tenancy:
    """Answers at once, from memory.

    Fails closed: a number that could not be looked up may belong to a tenant of a zone that promises something,
    and the built-in tenant promises nothing. So the built-in one answers only once it is known that there are no
    tenants, unless no call of such a zone could be taken anyway.
    """

    def __init__(
        self,
        directory: TenantDirectory,
        builtin: Plan,
        *,
        copied: bool,
        promised: bool,
        current: Callable[[], bool],
        test_zones: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`copied`: tenants are in a database of which this machine makes a copy.

        `promised`: this server can take calls of a zone that promises something. `current`: whether the copy is as
        new as the database. A copy that is being made shows the past first, when there may have been no tenants.
        `test_zones`: the zones that have a test number.
        """
        self._directory = directory
        self._builtin = builtin
        self._copied = copied
        self._promised = promised
        self._current = current
        # A tenant of its own, so that the records tell its calls from others.
        self._tests = {
            TEST_NUMBER_PREFIX + zone: replace(builtin, tenant=TEST_NUMBER_PREFIX + zone, zone=zone)
            for zone in test_zones
        }
        self._clock = clock
        self._began_at = clock()
        self._saw_no_tenants = False

    def plan_for(self, number: str) -> Plan | None:
        """The plan for the dialled number.

        None when no tenant has the number, its tenant cannot be used, or the tenants are not known yet.
        """
        plan = self._tests.get(number) or self._directory.plan_for(number)
        if plan is not None or self._directory.known:
            return plan
        return self._builtin if not self._promised or self._surely_none else None

    def is_broken(self, number: str) -> bool:
        """True for the number of a tenant that cannot be used."""
        return self._directory.is_broken(number)

    def plan_of(self, tenant: str) -> Plan | None:
        """The plan of a tenant by name; None when there is no such tenant, or it cannot be used."""
        if tenant == DEFAULT:
            return self._builtin
        return self._tests.get(tenant) or self._directory.plan_of(tenant)

    @property
    def test_numbers(self) -> Mapping[str, str]:
        """The number for test calls of each zone that has one, by zone."""
        return {plan.zone: number for number, plan in self._tests.items()}

    @property
    def trouble(self) -> str | None:
        """What is wrong with the stored tenants; None when nothing is."""
        return self._directory.trouble

    @property
    def settled(self) -> bool:
        """False after the start, while it is not known yet whether there are tenants."""
        if self._promised:
            return self._directory.known or self._surely_none
        waited_s = self._clock() - self._began_at
        return self._directory.read or not self._copied or waited_s > COPY_WAIT_S

    @property
    def _surely_none(self) -> bool:
        """True once the database was seen to have no tenants. Later ones are seen as they come."""
        if not self._saw_no_tenants and self._directory.read and not self._directory.known:
            self._saw_no_tenants = not self._copied or self._current()
        return self._saw_no_tenants
