"""What a turn cost: the price table of prices.toml, and the sum over a turn's tokens or minutes.

A backend or model that the table does not have costs an unknown amount, which is None and not 0. Does not know
when a turn is priced and where the result is kept.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from decimal import ROUND_HALF_UP, Decimal
from importlib import resources

from app.call.records import Record, Turn
from app.storage.errors import StorageError

ANY_MODEL = "*"

_MS_PER_MINUTE = 60_000
_MICROS = 1_000_000

COST_MAX_MICROUSD = 10**12
"""A million dollars for one turn is a mistake. The sum over nine million such turns still fits into 64 bits."""


class PriceError(StorageError):
    """The price table cannot be used; the text names the entry."""


@dataclass(frozen=True, slots=True)
class PerToken:
    """US dollars per million tokens, which is millionths of a dollar for each."""

    text_in: Decimal
    text_cached: Decimal
    text_out: Decimal
    audio_in: Decimal
    audio_cached: Decimal
    audio_out: Decimal

    def microusd(self, turn: Turn) -> Decimal:
        """Input counts include what was cached (realtime.md 1.12): each token is billed as one of the two."""
        return (
            max(0, turn.input_text_tokens - turn.cached_text_tokens) * self.text_in
            + turn.cached_text_tokens * self.text_cached
            + turn.output_text_tokens * self.text_out
            + max(0, turn.input_audio_tokens - turn.cached_audio_tokens) * self.audio_in
            + turn.cached_audio_tokens * self.audio_cached
            + turn.output_audio_tokens * self.audio_out
        )


@dataclass(frozen=True, slots=True)
class PerMinute:
    """US dollars per minute of speech."""

    minute: Decimal

    def microusd(self, turn: Turn) -> Decimal:
        """The turn's speech stands for the audio that was billed: a backend does not say how much that was."""
        return turn.said_ms * self.minute * _MICROS / _MS_PER_MINUTE


Price = PerToken | PerMinute


@dataclass(frozen=True, slots=True)
class Prices:
    """A price for each model of each backend."""

    table: Mapping[tuple[str, str], Price]

    @classmethod
    def packed(cls) -> "Prices":
        """The table packed with this program. Raises PriceError."""
        return cls.read(resources.files("app.ledger").joinpath("prices.toml").read_text("utf-8"))

    @classmethod
    def read(cls, text: str) -> "Prices":
        """A table in TOML: [backend."model"] with dollars. Raises PriceError."""
        try:
            backends = tomllib.loads(text, parse_float=Decimal)
        except tomllib.TOMLDecodeError as error:
            raise PriceError(f"price table: {error}") from None
        table: dict[tuple[str, str], Price] = {}
        for backend, models in backends.items():
            if not isinstance(models, dict):
                raise PriceError(f'price table: {backend} should be a table of models: [{backend}."model"]')
            for model, entry in models.items():
                table[backend, model] = _price(f'[{backend}."{model}"]', entry)
        return cls(table)

    def cost_microusd(self, turn: Turn) -> int | None:
        """Millionths of a US dollar, rounded; None when there is no price for it, or it exceeds all reason.

        A call hands its turns over while it runs, so whatever they say, nothing is raised here.
        """
        price = self.table.get((turn.backend, turn.model)) or self.table.get((turn.backend, ANY_MODEL))
        if price is None:
            return None
        try:
            cost = price.microusd(turn).to_integral_value(ROUND_HALF_UP)
        except ArithmeticError:
            return None  # a price such as 1e999999, times anything
        return int(cost) if 0 <= cost <= COST_MAX_MICROUSD else None

    def priced(self, record: Record) -> Record:
        """The record as it is kept: a turn with its cost, anything else as it is."""
        return replace(record, cost_microusd=self.cost_microusd(record)) if isinstance(record, Turn) else record


def _price(where: str, entry: object) -> Price:
    if not isinstance(entry, dict):
        raise PriceError(f"price table: {where} should be a table")
    for kind in (PerToken, PerMinute):
        if entry.keys() == {field.name for field in fields(kind)}:
            return kind(**{name: _dollars(f"{where} {name}", value) for name, value in entry.items()})
    tokens = ", ".join(field.name for field in fields(PerToken))
    raise PriceError(f"price table: {where} should have either minute, or all of {tokens}")


def _dollars(where: str, value: object) -> Decimal:
    amount = Decimal(value) if isinstance(value, int | Decimal) and not isinstance(value, bool) else Decimal("nan")
    if not amount.is_finite() or amount < 0:
        raise PriceError(f"price table: {where} should be an amount of US dollars")
    return amount
