"""The places of the world and their distances: cities that calls come from, regions, backends.

With Twilio a call comes in where Twilio's media server is, which is in Virginia, Ireland or Australia: ashburn,
dublin and sydney are those. From the other cities a phone network would come in that had servers everywhere.
"""

from collections.abc import Mapping
from types import MappingProxyType

from app.regions.table import REGIONS, Place, between_ms

CITIES: Mapping[str, Place] = MappingProxyType(
    {
        "ashburn": Place("Ashburn (Twilio us1)", 39.0, -77.5),
        "dublin": Place("Dublin (Twilio ie1)", 53.3, -6.3),
        "sydney": Place("Sydney (Twilio au1)", -33.9, 151.2),
        "berlin": Place("Berlin", 52.5, 13.4),
        "madrid": Place("Madrid", 40.4, -3.7),
        "london": Place("London", 51.5, -0.1),
        "new-york": Place("New York", 40.7, -74.0),
        "san-diego": Place("San Diego", 32.7, -117.2),
        "rio": Place("Rio de Janeiro", -22.9, -43.2),
        "osaka": Place("Osaka", 34.7, 135.5),
        "seoul": Place("Seoul", 37.6, 127.0),
        "auckland": Place("Auckland", -36.9, 174.8),
        "mumbai": Place("Mumbai", 19.1, 72.9),
        "nairobi": Place("Nairobi", -1.3, 36.8),
    }
)

BACKENDS: Mapping[str, str] = MappingProxyType({"openai": "iad", "openai-eu": "fra"})
"""Where the simulated backends are. Where OpenAI's are is not published."""


def rtt_ms(one: str, other: str) -> float:
    """Estimated round trip between two regions or cities. Raises KeyError for a name that is neither."""
    return 2.0 if one == other else between_ms(_place(one), _place(other))


def _place(name: str) -> Place:
    return REGIONS.get(name) or CITIES[name]
