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
from app.tenants.document import DocumentError, parse_document
from app.tenants.fields import KINDS, Known, checked
from app.tenants.tenant import Tenant, tenant_of, tenants_in, toml_of
from tests.tenants.samples import FIELDS, KNOWN, TENANTS, acme, tenants


def told(text: str) -> list[str]:
    """What is said of a file."""
    with pytest.raises(DocumentError) as error:
        tenants(text)
    return [str(problem).removeprefix("t.toml:") for problem in error.value.problems]


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


def test_all_that_is_wrong_is_told_at_once_each_with_its_line() -> None:
    assert told(MANY) == [
        "4: tenants.acme.numbers: '030 123456' should be a number with its country, such as +4930123456",
        "5: tenants.acme.numbers: '+49 30 123457' should be written +4930123457",
        '6: tenants.acme.numbers: should be a text in quotes, such as "+4930123456"',
        "7: tenants.acme.numbers: +4930123456 is here twice",
        "9: tenants.acme.zone: there is no zone 'eu1'; did you mean eu?",
        "10: tenants.acme.greting: there is no such field; did you mean greeting?",
        "13: tenants.default: this name is the built-in tenant's, which NEARCALL_CONFIG sets: choose another one",
        '14: tenants."Acé": a name should be lower-case letters, digits and single dashes, 40 at most',
        '14: tenants."Acé".numbers: should be a list of the tenant\'s phone numbers, such as ["+4930123456"]',
        "15: tenants.beta.numbers: +4930123456 is tenant acme's already",
        "15: tenants.beta.voice: should not be empty",
        "15: tenants.beta.backends: there is no backend 'opnai'; did you mean openai?",
        "15: tenants.beta.max_calls: should be a whole number",
        "16: tenants.gamma: should be a table, [tenants.gamma]",
        '17: tenants.delta.numbers: should be a list of the tenant\'s phone numbers, such as ["+4930123456"]',
        "17: tenants.delta.max_call_warning_s: should be from 0 to 40, which is max_call_s; left out, it is 60",
        f"19: tenants.delta.tools: there is no such field; known are {', '.join(['numbers', *KINDS])}",
        f"20: tenants.delta.tenant: there is no such field; known are {', '.join(['numbers', *KINDS])}",
        "21: tenants.delta.fallback_number: '110' should be a number with its country, such as +4930123456",
        "22: tenant: there is no such field; did you mean tenants?",
    ]


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ("zone = 1", "zone: should be a text"),
        ("zone = ''", "zone: there is no zone ''; known are eu, global"),
        ("greeting = 1", "greeting: should be a text"),
        (f"greeting = '{'x' * 50_001}'", "greeting: should have 50000 characters at most, and has 50001"),
        ("greeting_interruptible = 1", "greeting_interruptible: should be true or false"),
        ("vad_silence_ms = true", "vad_silence_ms: should be a whole number"),
        ("vad_silence_ms = 500.0", "vad_silence_ms: should be a whole number"),
        ("vad_silence_ms = '500'", "vad_silence_ms: should be a whole number"),
        ("vad_silence_ms = 99", "vad_silence_ms: should be from 100 to 5000"),
        ("vad_silence_ms = 5001", "vad_silence_ms: should be from 100 to 5000"),
        ("idle_prompt_s = true", "idle_prompt_s: should be a number of seconds"),
        ("idle_prompt_s = 2.9", "idle_prompt_s: should be from 3 to 600"),
        ("idle_prompt_s = nan", "idle_prompt_s: should be from 3 to 600"),
        ("max_call_s = inf", "max_call_s: should be from 30 to 3500"),
        ("max_call_s = 1" + "0" * 400, "max_call_s: should be from 30 to 3500"),
        ("idle_prompts_max = -1", "idle_prompts_max: should be from 0 to 100"),
        ("max_calls = -1", "max_calls: should be from 0 to 100000"),
        ("voice = ' '", "voice: should not be empty"),
        ("sorry = ''", "sorry: should not be empty"),
        (
            "fallback_number = '110'",
            "fallback_number: '110' should be a number with its country, such as +4930123456",
        ),
        ("backends = 'openai'", "backends: should be a list of texts"),
        ("backends = [1]", "backends: should be a list of texts"),
        ("backends = ['openai', 'openai']", "backends: names a backend twice"),
        ("voices = []", "voices: there is no such field; did you mean voice?"),
    ],
)
def test_bad_value_is_told_with_what_it_should_be(field: str, why: str) -> None:
    assert told(f'[tenants.acme]\nnumbers = ["+4930123456"]\n{field}\n') == [f"3: tenants.acme.{why}"]


def test_fields_that_do_not_fit_together_are_told_where_the_tenant_begins() -> None:
    assert told(f"\n{acme()}max_call_s = 40\nzone = 'mars'\n") == [
        "2: tenants.acme.max_call_warning_s: should be from 0 to 40, which is max_call_s; left out, it is 60",
        "6: tenants.acme.zone: there is no zone 'mars'; known are eu, global",
    ]


@pytest.mark.parametrize("name", ["a", "acme", "acme-2", "3com", "x" * 40])
def test_good_name(name: str) -> None:
    assert list(tenants(acme().replace("acme", name))) == [name]


@pytest.mark.parametrize("name", ["Acme", "a_b", "-a", "a-", "a--b", "x" * 41, '"a b"', '""', '"a\\n"', '"é"'])
def test_bad_name(name: str) -> None:
    assert told(acme().replace("acme", name)) == [
        f"1: tenants.{name}: a name should be lower-case letters, digits and single dashes, 40 at most"
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "its content is not JSON: "),
        ("{", "its content is not JSON: unexpected end of data"),
        ("[]", "its content is not a JSON object"),
        ('{"mood":"good"}', "mood: there is no such field"),
        ('{"zone":"mars"}', "zone: there is no zone 'mars'"),
        ('{"zone":"eu","voice":null}', "voice: should be a text"),
        ('{"backends":[{}]}', "backends: should be a list of texts"),
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
    with pytest.raises(DocumentError, match="there is no backend 'openai'; none is known"):
        tenants_in(document, Known({"global"}, ()))


def test_files_of_the_readme_are_good() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    shown = readme.split("\n## Tenants\n")[1].split("\nEvery field of")[0].split("*tenant*:\n")[1]
    assert list(tenants(textwrap.dedent(shown))) == ["zahnarzt-beispiel", "acme"]
    default = readme.split("\n    [default]\n")[1].split("\n\n")[0]
    values, faults = checked(parse_document(textwrap.dedent(default), "README.md").values, KNOWN)
    assert (set(values), faults) == (set(KINDS) - {"zone"}, [])
