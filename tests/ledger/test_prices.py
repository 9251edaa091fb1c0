"""What turns cost, worked out by hand."""

from dataclasses import replace
from decimal import Decimal

import pytest

from app.call.limits import TOKENS_MAX
from app.call.plan import Plan
from app.call.records import Speaker, Turn
from app.ledger.prices import PerMinute, PerToken, PriceError, Prices
from tests.ledger.samples import started, turn

TABLE = """
[openai."big"]
text_in = 4
text_cached = 0.4
text_out = 24
audio_in = 32
audio_cached = 0.40
audio_out = 64
[openai."scribe"]
minute = 0.0045
[practice."*"]
minute = 0
"""
PRICES = Prices.read(TABLE)
SPOKEN = replace(
    turn(0),
    backend="openai",
    model="big",
    input_text_tokens=1_000,
    cached_text_tokens=900,
    input_audio_tokens=500,
    cached_audio_tokens=400,
    output_text_tokens=50,
    output_audio_tokens=200,
)
HEARD = replace(turn(0), speaker=Speaker.CALLER, backend="openai", model="scribe", said_ms=2_000)


def test_turn_costs_each_kind_of_token_at_its_own_price() -> None:
    by_hand = 100 * 4 + 900 * 0.4 + 50 * 24 + 100 * 32 + 400 * 0.4 + 200 * 64
    assert PRICES.cost_microusd(SPOKEN) == by_hand == 18_120


@pytest.mark.parametrize(
    ("field", "microusd"),
    [
        ("input_text_tokens", 4_000),
        ("input_audio_tokens", 32_000),
        ("output_text_tokens", 24_000),
        ("output_audio_tokens", 64_000),
    ],
)
def test_thousand_tokens_of_one_kind_cost_their_price(field: str, microusd: int) -> None:
    alone = replace(turn(0), backend="openai", model="big", **{field: 1_000})  # type: ignore[arg-type]  # token counts
    assert PRICES.cost_microusd(alone) == microusd


@pytest.mark.parametrize("kind", ["text", "audio"])
def test_input_that_was_cached_whole_costs_the_cached_price_alone(kind: str) -> None:
    counts = {f"input_{kind}_tokens": 1_000, f"cached_{kind}_tokens": 1_000}
    assert PRICES.cost_microusd(replace(turn(0), backend="openai", model="big", **counts)) == 400  # type: ignore[arg-type]


def test_more_cached_than_input_costs_no_less_than_the_cached_part() -> None:
    odd = replace(turn(0), backend="openai", model="big", input_audio_tokens=0, cached_audio_tokens=1_000)
    assert PRICES.cost_microusd(odd) == 400


def test_callers_turn_costs_its_share_of_a_transcribed_minute() -> None:
    assert PRICES.cost_microusd(HEARD) == 150


@pytest.mark.parametrize("tokens", [10**12, 2**63 - 1, 10**40])
def test_turn_that_would_cost_more_than_anything_can_has_no_known_cost(tokens: int) -> None:
    assert PRICES.cost_microusd(replace(SPOKEN, output_audio_tokens=tokens)) is None


def test_price_beyond_what_numbers_can_hold_makes_no_known_cost() -> None:
    table = TABLE.replace("audio_out = 64", "audio_out = 1e999999")
    assert Prices.read(table).priced(SPOKEN) == replace(SPOKEN, cost_microusd=None)


def test_most_tokens_that_a_response_can_have_still_have_a_cost() -> None:
    most = replace(SPOKEN, output_audio_tokens=TOKENS_MAX)
    assert PRICES.cost_microusd(most) == 18_120 + (TOKENS_MAX - 200) * 64


def test_half_a_millionth_is_rounded_up() -> None:
    half = Prices({("openai", "scribe"): PerMinute(Decimal("0.000015"))})
    assert half.cost_microusd(HEARD) == 1


@pytest.mark.parametrize("change", [{"model": "bigger"}, {"model": ""}, {"backend": "openai-eu"}])
def test_model_or_backend_without_a_price_has_no_known_cost(change: dict[str, str]) -> None:
    assert PRICES.cost_microusd(replace(SPOKEN, **change)) is None  # type: ignore[arg-type]  # names


def test_any_model_of_the_practice_backend_is_free() -> None:
    assert PRICES.cost_microusd(replace(SPOKEN, backend="practice", model="whatever")) == 0


def test_turn_is_kept_with_its_cost_and_other_records_as_they_are() -> None:
    assert PRICES.priced(SPOKEN) == replace(SPOKEN, cost_microusd=18_120)
    assert PRICES.priced(started()) == started()


def test_packed_table_has_the_models_that_calls_use_unless_told_otherwise() -> None:
    packed, plan = Prices.packed(), Plan()
    assert packed.cost_microusd(replace(SPOKEN, model=plan.model)) == 18_120
    assert packed.cost_microusd(replace(HEARD, model=plan.transcription_model)) == 150
    assert packed.cost_microusd(replace(SPOKEN, backend="practice")) == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[openai", "at end of document"),
        ("openai = 1", 'openai should be a table of models: [openai."model"]'),
        ("[openai]\nbig = 1", '[openai."big"] should be a table'),
        ("[openai.big]\ntext_in = 1", '[openai."big"] should have either minute, or all of text_in, text_cached'),
        ("[openai.big]\nminute = 1\nhour = 2", "should have either minute"),
        ("[openai.big]\nminute = -1", '[openai."big"] minute should be an amount of US dollars'),
        ("[openai.big]\nminute = true", "should be an amount"),
        ("[openai.big]\nminute = '1'", "should be an amount"),
        ("[openai.big]\nminute = nan", "should be an amount"),
    ],
)
def test_mistake_in_the_table_is_named(text: str, why: str) -> None:
    with pytest.raises(PriceError) as raised:
        Prices.read(text)
    assert why in str(raised.value)


def test_turn_type_has_no_count_that_the_table_forgets() -> None:
    counts = {name for name in Turn.__dataclass_fields__ if name.endswith("_tokens")}
    assert counts == {f"{d}_{k}_tokens" for d in ("input", "cached", "output") for k in ("text", "audio")}


@pytest.mark.parametrize(("model", "share"), [("gpt-realtime-2.1", "1.1"), ("gpt-realtime-1.5", "1")])
def test_host_in_europe_asks_more_for_newer_models(model: str, share: str) -> None:
    prices = Prices.packed().table
    there, here = prices["openai-eu", model], prices["openai", model]
    assert isinstance(there, PerToken)
    assert isinstance(here, PerToken)
    assert there.audio_out == here.audio_out * Decimal(share)
    assert there.text_cached == here.text_cached * Decimal(share)
