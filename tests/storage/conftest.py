"""The servers of the ledger's tests, for those of storage."""

from tests.ledger.conftest import as_nobody, sqld

__all__ = ["as_nobody", "sqld"]
