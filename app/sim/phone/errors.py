"""The errors of the simulated phone: one class for each fault that a user must tell apart.

    PhoneError
        WebhookError                 the application's HTTP side (`url`)
            WebhookUnreachableError  no connection, or TLS refused
            WebhookTimeoutError      no complete answer within Twilio's limit
            WebhookBrokenError       the connection broke before the answer was complete
            WebhookStatusError       an answer that is not a success (`status`)
        TwimlError                   an answer Twilio would not run
            UnsupportedTwimlError    Twilio would run it, this phone cannot
        RedirectLoopError            the documents send the call round in a circle
        CallEndedError               something was waited for and the call ended first

`code` is the number Twilio would put into its error log (twilio.md 1.6, 2.2, 2.3, 2.6), None when it has none.
"""


class PhoneError(Exception):
    """The call failed or broke off. The text states the reason in one sentence."""

    code: int | None = None


class WebhookError(PhoneError):
    """A request to the application failed; `url` is the public one, as signed."""

    def __init__(self, url: str, text: str) -> None:
        super().__init__(text)
        self.url = url


class WebhookUnreachableError(WebhookError):
    code = 11205


class WebhookTimeoutError(WebhookError):
    code = 11205


class WebhookBrokenError(WebhookError):
    code = 11200


class WebhookStatusError(WebhookError):
    """The application answered with `status`; the text quotes the start of its body."""

    code = 11200

    def __init__(self, url: str, status: int, text: str) -> None:
        super().__init__(url, text)
        self.status = status


class TwimlError(PhoneError):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class UnsupportedTwimlError(TwimlError):
    """Valid TwiML that this phone does not play: a limit of the simulator, not a fault of the application."""

    def __init__(self, text: str) -> None:
        super().__init__(0, text)
        self.code = None


class RedirectLoopError(PhoneError):
    code = 11215


class CallEndedError(PhoneError):
    """The call ended before the awaited condition held."""
