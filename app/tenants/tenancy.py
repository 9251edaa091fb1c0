"""Whose call it is: the tenant that has the number, or the built-in one while there are no tenants at all.

Refuses to know where tenants are kept.
"""

import time
from collections.abc import Callable

from app.call.plan import Plan
from app.tenants.directory import TenantDirectory
from app.tenants.fields import DEFAULT

COPY_WAIT_S = 10.0
"""A new machine has no copy of the tenants yet, and would greet their callers as the built-in tenant: so long it
sends calls elsewhere. Then it takes them, for the database may be down for everybody."""


class Tenancy:
    """Answers at once, from memory."""

    def __init__(
        self,
        directory: TenantDirectory,
        builtin: Plan,
        *,
        copy_comes: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`copy_comes`: tenants are in a database whose copy is being made."""
        self._directory = directory
        self._builtin = builtin
        self._copy_comes = copy_comes
        self._clock = clock
        self._began_at = clock()

    def plan_for(self, number: str) -> Plan | None:
        """By the dialled number; None when there are tenants and it is nobody's, or its tenant cannot be used."""
        plan = self._directory.plan_for(number)
        return plan or (None if self._directory.known else self._builtin)

    def plan_of(self, tenant: str) -> Plan | None:
        """By the tenant's name; None when there is none that can be used."""
        return self._builtin if tenant == DEFAULT else self._directory.plan_of(tenant)

    @property
    def settled(self) -> bool:
        """False for a moment after the start, when nobody knows yet whether there are tenants."""
        waited_s = self._clock() - self._began_at
        return self._directory.read or not self._copy_comes or waited_s > COPY_WAIT_S
