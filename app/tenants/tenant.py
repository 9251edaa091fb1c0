"""A tenant: its name, its numbers, and what it sets of a plan. Read from a file for people, and from its rows.

A field that a tenant leaves out is not stored: it has the default of the program that answers. Refuses to know
where the file and the table are.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import orjson

from app.call.plan import Plan
from app.suggestions import instead
from app.tenants.document import Document, DocumentError, KeyPath, Problem, spelt_key, spelt_text
from app.tenants.fields import KINDS, Known, Value, check_name, check_number, checked

_NUMBERS = "numbers"
_TABLE = "tenants"


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant, checked."""

    name: str
    numbers: tuple[str, ...]
    """E.164, sorted."""
    fields: Mapping[str, Value]
    """What it sets, in the order of a plan's fields."""

    @property
    def plan(self) -> Plan:
        """How its calls are to be handled."""
        return replace(Plan(tenant=self.name), **self.fields)  # type: ignore[arg-type]  # checked by `fields`

    @property
    def content(self) -> str:
        """The fields as the table has them."""
        return orjson.dumps(self.fields).decode()


def tenant_of(name: str, numbers: Collection[str], content: str, known: Known) -> Tenant:
    """A tenant from its rows. Raises ValueError with everything that is wrong."""
    check_name(name)
    try:
        table = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"its content is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise ValueError("its content is not a JSON object")  # noqa: TRY004  callers take ValueError
    values, faults = checked(table, known)
    if faults:
        raise ValueError("; ".join(f"{fault.field}: {fault.why}" for fault in faults))
    return Tenant(name, tuple(sorted(numbers)), _in_order(values))


def _in_order(values: Mapping[str, Value]) -> dict[str, Value]:
    return {name: values[name] for name in KINDS if name in values}


# --- A file -------------------------------------------------------------------------------------


def tenants_in(document: Document, known: Known) -> dict[str, Tenant]:
    """The tenants of a file, by name. Raises DocumentError with all that is wrong with any of them."""
    reader = _Reader(document, known)
    tenants = {tenant.name: tenant for tenant in reader.tenants()}
    if reader.problems:
        raise DocumentError(reader.problems)
    return tenants


class _Reader:
    def __init__(self, document: Document, known: Known) -> None:
        self._document = document
        self._known = known
        self._owners: dict[str, str] = {}
        """Number to the tenant that has it."""
        self.problems: list[Problem] = []

    def tenants(self) -> Iterator[Tenant]:
        for name, table in self._document.values.items():
            if name != _TABLE:
                self._wrong((name,), f"there is no such field{instead(name, [_TABLE])}")
            elif not isinstance(table, dict):
                self._wrong((name,), "should be tables, such as [tenants.acme]")
            else:
                for each, content in table.items():
                    yield from self._tenant(each, content)

    def _tenant(self, name: str, table: object) -> Iterator[Tenant]:
        path = (_TABLE, name)
        try:
            check_name(name)
        except ValueError as error:
            self._wrong(path, str(error))
        if not isinstance(table, dict):
            self._wrong(path, f"should be a table, [{_TABLE}.{spelt_key(name)}]")
            return
        numbers = self._numbers(name, table.get(_NUMBERS))
        values, faults = checked({field: value for field, value in table.items() if field in KINDS}, self._known)
        for fault in faults:
            self._wrong((*path, fault.field), fault.why)
        for field in table:
            if field != _NUMBERS and field not in KINDS:
                self._wrong((*path, field), f"there is no such field{instead(field, [_NUMBERS, *KINDS])}")
        yield Tenant(name, tuple(sorted(numbers)), _in_order(values))

    def _numbers(self, name: str, numbers: object) -> list[str]:
        path = (_TABLE, name, _NUMBERS)
        if not isinstance(numbers, list) or not numbers:
            self._wrong(path, 'should be a list of the tenant\'s phone numbers, such as ["+4930123456"]')
            return []
        good = []
        for place, number in enumerate(numbers):
            try:
                good.append(self._number(name, number))
            except ValueError as error:
                self._wrong((*path, place), str(error))
        return good

    def _number(self, name: str, number: object) -> str:
        if not isinstance(number, str):
            raise ValueError('should be a text in quotes, such as "+4930123456"')  # noqa: TRY004
        check_number(number)
        if number in self._owners:
            owner = self._owners[number]
            raise ValueError(
                f"{number} is here twice" if owner == name else f"{number} is tenant {spelt_key(owner)}'s already"
            )
        self._owners[number] = name
        return number

    def _wrong(self, path: KeyPath, why: str) -> None:
        self.problems.append(self._document.problem(path, why))


# --- The same as TOML ---------------------------------------------------------------------------


def toml_of(tenant: Tenant, *, defaults: bool = False) -> str:
    """A tenant as a table of such a file. `defaults`: also, marked, what it leaves out."""
    lines = [f"[{_TABLE}.{spelt_key(tenant.name)}]", f"{_NUMBERS} = {_spelt(tenant.numbers)}"]
    for name in KINDS:
        if name in tenant.fields:
            lines.append(f"{name} = {_spelt(tenant.fields[name])}")
        elif defaults:
            lines.append(f"{name} = {_spelt(getattr(tenant.plan, name))}  # default")
    return "\n".join(lines) + "\n"


def _spelt(value: Value) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _paragraphs(value) if "\n" in value else spelt_text(value)
        case _:
            return f"[{', '.join(map(spelt_text, value))}]"


def _paragraphs(text: str) -> str:
    """A text of several lines, as one reads it."""
    lines = "\n".join(spelt_text(line)[1:-1].replace('\\"', '"') for line in text.split("\n"))
    # Three quotes in a row would end it, and so would one right before the end.
    return '"""\n' + re.sub(r'"(?="|\Z)', r'\\"', lines) + '"""'
