"""A tenants' file: all that is wrong with it, each with its line; and what is right comes back unchanged."""

import json
import textwrap
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.call.plan import Plan
from app.tenants.document import parse_document
from app.tenants.fields import KINDS, Known, checked
from app.tenants.tenant import Tenant, tenant_of, tenants_in, toml_of
from app.validation import SettingsError
from tests.tenants.samples import FIELDS, KNOWN, TENANTS, acme, tenants


def told(text: str) -> list[str]:
    """What is said of a file."""
    with pytest.raises(SettingsError) as error:
        tenants(text)
    return [str(mistake).removeprefix("t.toml:") for mistake in error.value.mistakes]


def test_every_field_of_a_plan_can_be_set() -> None:
    assert set(FIELDS) == set(KINDS)


def test_what_is_left_out_has_the_programs_default() -> None:
    [tenant] = tenants(acme("Hi.")).values()
    assert tenant.plan == Plan(tenant="acme", greeting="Hi.")
    assert tenant.content == '{"greeting":"Hi."}'


def test_whole_number_is_good_for_seconds() -> None:
    [tenant] = tenants(acme() + "idle_prompt_s = 20\n").values()
    assert (tenant.plan.idle_prompt_s, tenant.content) == (20.0, '{"greeting":"Hello.","idle_prompt_s":20.0}')


@pytest.mark.parametrize("text", ["", "[tenants]\n", "# nobody\n"])
def test_file_without_tenants_has_none(text: str) -> None:
    assert tenants(text) == {}


@given(st.lists(TENANTS, max_size=4, unique_by=lambda tenant: tenant.name))
def test_exported_tenants_are_imported_as_they_were(there: list[Tenant]) -> None:
    # Numbers of one tenant alone; who has which is drawn at random.
    one_each = [replace(one, numbers=(f"+4930{place:05}",)) for place, one in enumerate(there)]
    read = tenants("\n".join(map(toml_of, one_each)))
    assert read == {one.name: one for one in one_each}
    assert [one.plan for one in read.values()] == [one.plan for one in one_each]


@given(TENANTS)
def test_numbers_and_defaults_come_back_as_well(tenant: Tenant) -> None:
    assert tenants(toml_of(tenant)) == {tenant.name: tenant}
    assert tenants(toml_of(tenant, defaults=True))[tenant.name].plan == tenant.plan


@given(TENANTS)
def test_stored_tenant_is_the_one_that_was_imported(tenant: Tenant) -> None:
    assert tenant_of(tenant.name, tenant.numbers, tenant.content, KNOWN) == tenant


def test_text_of_several_lines_is_exported_as_one_reads_it() -> None:
    tenant = Tenant("acme", ("+4930123456",), {"instructions": 'Say "hi".\n\tBe """kind""".'})
    assert 'instructions = """\nSay "hi".\n\\tBe \\"\\""kind\\"\\"".\n"""' not in toml_of(tenant)
    assert '"""\nSay "hi".\n' in toml_of(tenant)


MANY = """\
[tenants.acme]
numbers = [
  "+4930123456",
  "030 123456",
  "+49 30 123457",
  4930123458,
  "+4930123456",
]
zone = "eu1"
greting = "Hallo"

[tenants]
default.numbers = ["+4930123459"]
"Ac\\u00e9".numbers = []
beta = { numbers = ["+4930123456"], voice = "", backends = ["openai", "opnai"], max_calls = 1.5 }
gamma = 1
[tenants.delta]
max_call_s = 40
tools = []
tenant = "x"
fallback_number = "110"
[tenant.x]
"""


def test_all_that_is_wrong_is_reported_at_once_each_with_its_line() -> None:
    assert told(MANY) == [
        (
            '4: tenants.acme.numbers contains "030 123456".'
            " It should be a phone number with its country, such as +4930123456."
        ),
        '5: tenants.acme.numbers contains "+49 30 123457". It should be written +4930123457.',
        '6: tenants.acme.numbers contains 4930123458. It should be a text in quotes, such as "+4930123456".',
        '7: tenants.acme.numbers contains "+4930123456", twice.',
        '9: tenants.acme.zone is "eu1". It should be one of eu, global. Did you mean eu?',
        "10: tenants.acme.greting is not a known field. Did you mean greeting?",
        (
            "13: tenants.default is the built-in tenant, which the file of NEARCALL_CONFIG sets."
            " It should be another name."
        ),
        (
            '14: tenants."Acé" is not the name of a tenant.'
            " It should be lower-case letters, digits and single dashes, 40 characters at most."
        ),
        (
            '14: tenants."Acé".numbers is an empty list.'
            ' It should be a list of the tenant\'s phone numbers, such as ["+4930123456"].'
        ),
        '15: tenants.beta.numbers contains "+4930123456", which tenant acme has already.',
        '15: tenants.beta.voice is "". It should be a text that is not empty.',
        (
            '15: tenants.beta.backends contains "opnai".'
            " It should be a list of names, each one of openai, openai-eu, voicelive. Did you mean openai?"
        ),
        "15: tenants.beta.max_calls is 1.5. It should be a whole number from 0 to 100000.",
        "16: tenants.gamma is 1. It should be a table, [tenants.gamma].",
        (
            "17: tenants.delta.numbers is missing."
            ' It should be a list of the tenant\'s phone numbers, such as ["+4930123456"].'
        ),
        (
            "17: tenants.delta.max_call_warning_s is left out, which means 60."
            " It should be a number from 0 to 40, which is max_call_s."
        ),
        f"19: tenants.delta.tools is not a known field. It should be one of {', '.join(['numbers', *KINDS])}.",
        f"20: tenants.delta.tenant is not a known field. It should be one of {', '.join(['numbers', *KINDS])}.",
        (
            '21: tenants.delta.fallback_number is "110".'
            " It should be a phone number with its country, such as +4930123456."
        ),
        "22: tenant is not a known table. Did you mean tenants?",
    ]


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ("zone = 1", "zone is 1. It should be one of eu, global."),
        ("zone = ''", 'zone is "". It should be one of eu, global.'),
        ("greeting = 1", "greeting is 1. It should be a text."),
        (
            f"greeting = '{'x' * 50_001}'",
            "greeting is a text of 50001 characters. It should be a text of 50000 characters at most.",
        ),
        ("greeting_interruptible = 1", "greeting_interruptible is 1. It should be true or false."),
        ("vad_silence_ms = true", "vad_silence_ms is true. It should be a whole number from 100 to 5000."),
        ("vad_silence_ms = 500.0", "vad_silence_ms is 500.0. It should be a whole number from 100 to 5000."),
        ("vad_silence_ms = '500'", 'vad_silence_ms is "500". It should be a whole number from 100 to 5000.'),
        ("vad_silence_ms = 99", "vad_silence_ms is 99. It should be a whole number from 100 to 5000."),
        ("vad_silence_ms = 5001", "vad_silence_ms is 5001. It should be a whole number from 100 to 5000."),
        ("idle_prompt_s = true", "idle_prompt_s is true. It should be a number of seconds from 3 to 600."),
        ("idle_prompt_s = 2.9", "idle_prompt_s is 2.9. It should be a number of seconds from 3 to 600."),
        ("idle_prompt_s = nan", "idle_prompt_s is nan. It should be a number of seconds from 3 to 600."),
        ("max_call_s = inf", "max_call_s is inf. It should be a number of seconds from 30 to 14400."),
        (
            "max_call_s = 1" + "0" * 400,
            "max_call_s is a number of 401 digits. It should be a number of seconds from 30 to 14400.",
        ),
        ("idle_prompts_max = -1", "idle_prompts_max is -1. It should be a whole number from 0 to 100."),
        ("max_calls = -1", "max_calls is -1. It should be a whole number from 0 to 100000."),
        ("voice = ' '", 'voice is " ". It should be a text that is not empty.'),
        ("sorry = ''", 'sorry is "". It should be a text that is not empty.'),
        (
            "fallback_number = '110'",
            'fallback_number is "110". It should be a phone number with its country, such as +4930123456.',
        ),
        (
            "backends = 'openai'",
            'backends is "openai". It should be a list of names, each one of openai, openai-eu, voicelive.',
        ),
        (
            "backends = [1]",
            "backends contains 1. It should be a list of names, each one of openai, openai-eu, voicelive.",
        ),
        ("backends = ['openai', 'openai']", 'backends contains "openai", twice.'),
        ("voices = []", "voices is not a known field. Did you mean voice?"),
    ],
)
def test_bad_value_is_reported_with_what_it_should_be(field: str, why: str) -> None:
    assert told(f'[tenants.acme]\nnumbers = ["+4930123456"]\n{field}\n') == [f"3: tenants.acme.{why}"]


def test_fields_that_do_not_fit_together_are_reported_at_the_tenant() -> None:
    assert told(f"\n{acme()}max_call_s = 40\nzone = 'mars'\n") == [
        (
            "2: tenants.acme.max_call_warning_s is left out, which means 60."
            " It should be a number from 0 to 40, which is max_call_s."
        ),
        '6: tenants.acme.zone is "mars". It should be one of eu, global.',
    ]


@pytest.mark.parametrize("name", ["a", "acme", "acme-2", "3com", "x" * 40])
def test_good_name(name: str) -> None:
    assert list(tenants(acme().replace("acme", name))) == [name]


@pytest.mark.parametrize("name", ["Acme", "a_b", "-a", "a-", "a--b", "x" * 41, '"a b"', '""', '"a\\n"', '"é"'])
def test_bad_name(name: str) -> None:
    assert told(acme().replace("acme", name)) == [
        (
            f"1: tenants.{name} is not the name of a tenant."
            " It should be lower-case letters, digits and single dashes, 40 characters at most."
        )
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "The content is not JSON: "),
        ("{", "The content is not JSON: unexpected end of data"),
        ("[]", "The content is not a JSON object"),
        ('{"mood":"good"}', "mood is not a known field"),
        ('{"zone":"mars"}', 'zone is "mars"'),
        ('{"zone":"eu","voice":null}', "voice is null. It should be a text"),
        ('{"backends":[{}]}', "backends contains a table. It should be a list of names"),
    ],
)
def test_stored_content_that_cannot_be_used(content: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        tenant_of("acme", ["+4930123456"], content, KNOWN)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*KINDS, "numbers", "mood"]), JSON, max_size=4), st.text(max_size=5))
def test_whatever_is_stored_is_used_or_refused(content: dict[str, object], name: str) -> None:
    """Another exception would keep every other tenant from being read."""
    for called in ("acme", name):
        with suppress(ValueError):
            tenant = tenant_of(called, ["+4930123456"], json.dumps(content), KNOWN)
            assert tenant.plan.tenant == called


def test_nothing_is_suggested_when_there_is_nothing() -> None:
    document = parse_document(acme() + 'backends = ["openai"]\n', "t.toml")
    with pytest.raises(
        SettingsError, match=r'backends contains "openai"\. It should be left out, because none is known.'
    ):
        tenants_in(document, Known({"global"}, ()))


def test_files_of_the_readme_are_good() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    shown = readme.split("\n## Tenants\n")[1].split("\nEvery field of")[0].split("*tenant*:\n")[1]
    assert list(tenants(textwrap.dedent(shown))) == ["zahnarzt-beispiel", "acme"]
    default = readme.split("\n    [default]\n")[1].split("\n\n")[0]
    values, faults = checked(parse_document(textwrap.dedent(default), "README.md").values, KNOWN)
    assert (set(values), faults) == (set(KINDS) - {"zone"}, [])
