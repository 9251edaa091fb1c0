"""Ends a phone call by Twilio's REST API: one request, to the region that processes the call (twilio.md 4, 5.3).

Ending by REST avoids the error 31921 that closing the stream leaves in Twilio's log. When this fails, closing the
stream still ends the call, so a failure is a return value and never an exception.
"""

import asyncio
from collections.abc import Mapping

import httpx

REQUEST_LIMIT_S = 3.0
"""Shorter than HANG_UP_GRACE_S: after it the stream is closed instead."""

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


class TwilioRest:
    """Twilio's Calls resource, as far as ending calls goes."""

    def __init__(
        self,
        account_sid: str,
        tokens: Mapping[str, str],
        hosts: Mapping[str, str] = API_HOSTS,
        *,
        limit_s: float = REQUEST_LIMIT_S,
    ) -> None:
        """`tokens`, `hosts`: auth tokens and base URLs by Twilio region. Without both, closing the stream must do.

        `limit_s`: for all tries of one hang-up.
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
        try:
            async with asyncio.timeout(self._limit_s):
                return await self._complete(call_sid, twilio_region)
        except TimeoutError:
            return f"no answer within {self._limit_s:g} s"

    async def _complete(self, call_sid: str, twilio_region: str) -> str | None:
        token, host = self._tokens.get(twilio_region), self._hosts.get(twilio_region)
        if token is None or host is None:
            return f"no auth token or API host for Twilio's {twilio_region}"
        path = f"/2010-04-01/Accounts/{self._account_sid}/Calls/{call_sid}.json"
        why = ""
        for _ in range(TRIES):
            try:
                answer = await self._http.post(
                    host + path, data={"Status": "completed"}, auth=(self._account_sid, token)
                )
            except httpx.HTTPError as error:
                why = type(error).__name__
                continue
            if answer.is_success or _code(answer) == CALL_IS_OVER:
                return None
            why = f"HTTP {answer.status_code}, code {_code(answer)}"
            if answer.status_code not in _RETRIED:
                break
        return why


def _code(answer: httpx.Response) -> int | None:
    try:
        body = answer.json()
    except ValueError:
        return None
    code = body.get("code") if isinstance(body, dict) else None
    return code if isinstance(code, int) else None
