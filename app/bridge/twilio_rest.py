"""Ends and redirects phone calls by Twilio's REST API, in the region that processes the call (twilio.md 4, 5.3).

Ending by REST avoids the error 31921 that closing the stream leaves in Twilio's log. When a request fails, closing
the stream ends the call or has Twilio ask `/twiml/after`, so a failure is a return value and never an exception.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from app.call.events import RedirectAnswered, RedirectOutcome
from app.call.limits import REST_LIMIT_S

TRIES = 2
"""Hanging up twice is harmless (twilio.md 4.1), and the caller listens to silence meanwhile."""

CALL_IS_OVER = 21220
"""Twilio's code for an update of a call that has just ended: nothing is left to do."""

API_HOSTS: Mapping[str, str] = {
    "us1": "https://api.twilio.com",
    "ie1": "https://api.dublin.ie1.twilio.com",
    "au1": "https://api.sydney.au1.twilio.com",
}
"""Edge and region both: `api.ie1.twilio.com` was switched off in April 2026 (twilio.md 5.3)."""

_RETRIED = frozenset({429, 500, 502, 503, 504})
_NOT_SENT = httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout
"""Twilio cannot have done what it was not asked."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of an update of a call."""

    failed: str | None = None
    """Why it failed; None when Twilio did it or the call was over."""
    over: bool = False
    """The call had ended before."""


class TwilioRest:
    """Twilio's Calls resource, as far as updates of live calls go."""

    def __init__(
        self,
        account_sid: str,
        tokens: Mapping[str, str],
        hosts: Mapping[str, str] = API_HOSTS,
        *,
        limit_s: float = REST_LIMIT_S,
    ) -> None:
        """`tokens`, `hosts`: auth tokens and base URLs by Twilio region. Without both, closing the stream must do.

        `limit_s`: for all tries of one update.
        """
        self._account_sid = account_sid
        self._tokens = tokens
        self._hosts = hosts
        self._limit_s = limit_s
        # trust_env: proxies from the environment would be settings that config.py knows nothing of.
        self._http = httpx.AsyncClient(timeout=limit_s, trust_env=False)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def hang_up(self, call_sid: str, twilio_region: str) -> str | None:
        """End a call. Return None when it is over or will be; otherwise why not: close the stream instead."""
        return (await self._update(call_sid, twilio_region, {"Status": "completed"}, repeatable=True)).failed

    async def redirect(self, call_sid: str, twilio_region: str, url: str) -> RedirectAnswered:
        """Have Twilio end the call's stream and continue the call with the document at `url`.

        A request that may have been carried out is not sent again: the document would be started twice.
        """
        fields = {"Url": url, "Method": "POST"}
        answer = await self._update(call_sid, twilio_region, fields, repeatable=False)
        if answer.failed is not None:
            return RedirectAnswered(RedirectOutcome.FAILED, answer.failed)
        return RedirectAnswered(RedirectOutcome.CALL_OVER if answer.over else RedirectOutcome.ACCEPTED)

    async def _update(
        self, call_sid: str, twilio_region: str, fields: Mapping[str, str], *, repeatable: bool
    ) -> _Answer:
        try:
            async with asyncio.timeout(self._limit_s):
                return await self._try(call_sid, twilio_region, fields, repeatable=repeatable)
        except TimeoutError:
            return _Answer(f"no answer within {self._limit_s:g} s")

    async def _try(
        self, call_sid: str, twilio_region: str, fields: Mapping[str, str], *, repeatable: bool
    ) -> _Answer:
        token, host = self._tokens.get(twilio_region), self._hosts.get(twilio_region)
        if token is None or host is None:
            return _Answer(f"no auth token or API host for Twilio's {twilio_region}")
        path = f"/2010-04-01/Accounts/{self._account_sid}/Calls/{call_sid}.json"
        why = ""
        for _ in range(TRIES):
            try:
                answer = await self._http.post(host + path, data=fields, auth=(self._account_sid, token))
            except httpx.HTTPError as error:
                why = type(error).__name__
                if repeatable or isinstance(error, _NOT_SENT):
                    continue
                break
            code = _code(answer)
            if answer.is_success or code == CALL_IS_OVER:
                return _Answer(over=code == CALL_IS_OVER)
            why = f"HTTP {answer.status_code}, code {code}"
            if answer.status_code not in _RETRIED:
                break
        return _Answer(why)


def _code(answer: httpx.Response) -> int | None:
    try:
        body = answer.json()
    except ValueError:
        return None
    code = body.get("code") if isinstance(body, dict) else None
    return code if isinstance(code, int) else None
