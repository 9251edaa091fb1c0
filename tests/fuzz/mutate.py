"""Damage to messages that were right: what a peer with a bug, another version or bad intentions might send.

Structure-aware: most of what comes out is still JSON of nearly the right shape, so that it gets as far as the code
that uses it.
"""

import re
from random import Random
from typing import Any, Final

import orjson

TOKENS: Final = (
    *(
        "null",
        "true",
        "false",
        "0",
        "-1",
        "-0.0",
        "1.5",
        "7",
        "1e30",
        "-1e30",
        "1e308",
        "1e400",
        "NaN",
        "Infinity",
    ),
    *("2147483648", "9223372036854775807", "9223372036854775808", "18446744073709551616"),
    "123456789012345678901234567890",
    *('""', '" "', '"0"', '"-1"', '"1e9"', '"99999999999999999999"', '"\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"'),
    *(
        '"\u0663"',
        '"\u00b2"',
        '"A"',
        '"AAAA"',
        '"===="',
        '"AA=A"',
        '"\\"}"',
        '"<b>&"',
        '"a\\nb"',
        '"\u202e\u2028"',
    ),
    *('"inbound"', '"outbound"', '"audio/pcmu"', '"completed"', '"failed"', '"cancelled"', '"hang_up"', '"inf"'),
    *('"insufficient_quota"', '"rate_limit_exceeded"', '"conversation_already_has_active_response"'),
    *("[]", "{}", "[[]]", "[null]", "[1e30]", '{"":{}}', '{"type":"error"}', '{"id":1}', '[{"type":"null"}]'),
)
"""Values as JSON spells them, or as it should not."""

_SAME_KEY: Final = "\ufdd0"
"""Stands behind a key that is to come twice; taken out of the text at the end."""

_TOKEN: Final = "\ufdd1"
_TOKEN_BYTES: Final = re.compile(b'"' + _TOKEN.encode() + rb'(\d+)"')

_ODD_BYTES: Final = (
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xc3",
    b"\xef\xbb\xbf",
    b"\\u",
    b'"',
    b"{",
    b"[",
    b"}",
    b",",
)
_ODD_CHARS: Final = "\0\x1f\x7f\xe9\u0663\u202e\ufffd\U0001f600\"'<>&%;=\\/?#\r\n"


class Mutator:
    """Damages messages. Everything comes from its `rng`."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def message(self, message: bytes) -> bytes:
        """A JSON message, damaged once or more."""
        rng = self._rng
        if rng.random() < 0.15:
            return self.data(message)
        try:
            values = orjson.loads(message)
        except orjson.JSONDecodeError:
            return self.data(message)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            values = self._damaged(values)
        text = orjson.dumps(values).replace(_SAME_KEY.encode(), b"")
        text = _TOKEN_BYTES.sub(lambda found: TOKENS[int(found[1])].encode(), text)
        return self.data(text) if rng.random() < 0.02 else text

    def data(self, data: bytes) -> bytes:
        """Bytes, damaged without a look at what they mean."""
        rng = self._rng
        at, to = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
        match rng.randrange(8):
            case 0:
                return data[:at]
            case 1:
                return data[:at] + data[to:]
            case 2:
                return data[:to] + data[at:]
            case 3:
                return data[:at] + rng.choice(_ODD_BYTES) + data[at:]
            case 4:
                return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 5:
                return data + data
            case 6:
                return b"[" * rng.choice((3, 1_500)) + data
            case _:
                return rng.randbytes(rng.choice((0, 1, 40)))

    def text(self, text: str) -> str:
        """A text, damaged, or another one."""
        rng = self._rng
        at, to = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        match rng.randrange(7):
            case 0:
                return text[:at]
            case 1:
                return text[:at] + rng.choice(_ODD_CHARS) + text[at:]
            case 2:
                return text[:to] + text[at:]
            case 3:
                return self.long_text()
            case 4:
                return "".join(rng.choices(_ODD_CHARS, k=rng.randrange(6)))
            case 5:
                return text.swapcase()
            case _:
                return rng.choice(TOKENS).strip('"')

    def long_text(self) -> str:
        """Mostly a few hundred characters, seldom a megabyte."""
        rng = self._rng
        size = rng.choices((300, 5_000, 70_000, 1_000_000), (60, 30, 9, 1))[0]
        return rng.choice(("x", "A", "\xe9", "9", "\U0001f600")) * size

    def _damaged(self, values: Any) -> Any:
        rng = self._rng
        if not isinstance(values, dict | list) or not values or rng.random() < 0.01:
            return self._anything()
        place, key = self._somewhere(values)
        match rng.randrange(10):
            case 0 | 1 | 2 | 3:
                place[key] = self._anything()
            case 4 | 5:
                del place[key]
            case 6 if isinstance(place, dict):
                place[f"{key}{_SAME_KEY}"] = self._anything()
            case 7 if isinstance(place, dict):
                place[self.text(str(key))[:100]] = place.pop(key)
            case 8:
                place[key] = [place[key]]
            case _:
                other, other_key = self._somewhere(values)
                if not _within(place[key], other) and not _within(other[other_key], place):
                    place[key], other[other_key] = other[other_key], place[key]
        return values

    def _somewhere(self, values: Any) -> tuple[Any, Any]:
        """A container inside a message, and one of its keys."""
        rng, place = self._rng, values
        while True:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
                return place, key
            place = inner

    def _anything(self) -> Any:
        rng = self._rng
        if rng.random() < 0.1:
            return self.long_text()
        if rng.random() < 0.02:
            nested: Any = 0
            for _ in range(200):
                nested = [nested]
            return nested
        return f"{_TOKEN}{rng.randrange(len(TOKENS))}"


def _within(value: Any, container: Any) -> bool:
    """True when a container is this value or somewhere inside it: a swap would make a ring."""
    if value is container:
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_within(each, container) for each in inner)
