"""Servers for the tenants' tests."""

from tests.ledger.conftest import sqld

__all__ = ["sqld"]
