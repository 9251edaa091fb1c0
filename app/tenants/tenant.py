"""A tenant: its name, its numbers, and the fields of a plan that it sets; read from a TOML file or from its rows.

A field that a tenant leaves out is not stored: it has the default of the program that answers. Refuses to know
where the file and the table are.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import orjson

from app.call.plan import Plan
from app.tenants.document import Document
from app.tenants.fields import KINDS, Known, Value, check_name, checked, number, plan_fields
from app.validation import (
    Field,
    KeyPath,
    Mistake,
    WrongValueError,
    list_of,
    read_value,
    refuse,
    shown,
    spelt_key,
    spelt_text,
    unknown,
)

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
    """Read a tenant from its rows. Raises ValueError with everything that is wrong."""
    try:
        check_name(name)
    except WrongValueError as error:
        raise ValueError(f"The name {error}. It should be {error.expected}.") from None
    try:
        table = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"The content is not JSON: {error}.") from None
    if not isinstance(table, dict):
        raise ValueError("The content is not a JSON object.")  # noqa: TRY004  callers take ValueError
    values, mistakes = checked(table, known)
    if mistakes:
        raise ValueError(" ".join(mistake.sentence for mistake in mistakes))
    return Tenant(name, tuple(sorted(numbers)), _in_order(values))


def _in_order(values: Mapping[str, Value]) -> dict[str, Value]:
    return {name: values[name] for name in KINDS if name in values}


# --- A file -------------------------------------------------------------------------------------


def tenants_in(document: Document, known: Known) -> dict[str, Tenant]:
    """The tenants of a file, by name. Raises SettingsError with every mistake in the file."""
    reader = _Reader(known)
    tenants = {tenant.name: tenant for tenant in reader.tenants(document.values)}
    refuse(document.located(reader.mistakes))
    return tenants


class _Reader:
    def __init__(self, known: Known) -> None:
        self._fields = [_NUMBERS, *plan_fields(known)]
        self._known = known
        self._owners: dict[str, str] = {}
        """Each number, with the tenant that has it."""
        self.mistakes: list[Mistake] = []

    def tenants(self, values: Mapping[str, object]) -> Iterator[Tenant]:
        for name, table in values.items():
            if name != _TABLE:
                self.mistakes.append(unknown((name,), [_TABLE], "table"))
            elif not isinstance(table, dict):
                self.mistakes.append(Mistake((name,), f"is {shown(table)}", "tables, such as [tenants.acme]"))
            else:
                for each, content in table.items():
                    yield from self._tenant(each, content)

    def _tenant(self, name: str, table: object) -> Iterator[Tenant]:
        path = (_TABLE, name)
        try:
            check_name(name)
        except WrongValueError as error:
            self.mistakes.append(Mistake(path, str(error), error.expected or ""))
        if not isinstance(table, dict):
            self.mistakes.append(Mistake(path, f"is {shown(table)}", f"a table, [{_TABLE}.{spelt_key(name)}]"))
            return
        numbers = self._numbers(name, table)
        values, mistakes = checked({field: table[field] for field in table if field in KINDS}, self._known)
        self.mistakes += [replace(mistake, path=(*path, *mistake.path)) for mistake in mistakes]
        self.mistakes += [unknown((*path, field), self._fields) for field in table if field not in self._fields]
        yield Tenant(name, tuple(sorted(numbers)), _in_order(values))

    def _numbers(self, name: str, table: Mapping[str, object]) -> tuple[str, ...]:
        path: KeyPath = (_TABLE, name, _NUMBERS)
        field = Field(
            _NUMBERS,
            list_of(lambda value: self._number(name, value), empty=False, unique=True),
            'a list of the tenant\'s phone numbers, such as ["+4930123456"]',
        )
        if _NUMBERS not in table:
            self.mistakes.append(Mistake(path, "is missing", field.expected))
            return ()
        for numbers in read_value(field, table[_NUMBERS], path, self.mistakes):
            return numbers
        return ()

    def _number(self, name: str, value: object) -> str:
        found = number(value)
        owner = self._owners.setdefault(found, name)
        if owner != name:
            raise WrongValueError(f"which tenant {spelt_key(owner)} has already", expected="")
        return found


# --- The same as TOML ---------------------------------------------------------------------------


def toml_of(tenant: Tenant, *, defaults: bool = False) -> str:
    """Write a tenant as a table of such a file. `defaults`: also the fields that it leaves out, marked."""
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
    """Write a text of several lines on as many lines."""
    lines = "\n".join(spelt_text(line)[1:-1].replace('\\"', '"') for line in text.split("\n"))
    # Three quotes in a row would end it, and so would one right before the end.
    return '"""\n' + re.sub(r'"(?="|\Z)', r'\\"', lines) + '"""'
