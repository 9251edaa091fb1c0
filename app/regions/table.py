"""Fly's regions, and how far they are from each other.

Round trips are estimates, not measurements: the great circle between the two cities at the speed of light in
glass (200 km a millisecond), half as much again because cables take detours, and 2 ms for the machines in between.
Between Europe and north-east Asia the detour is longer, because few cables cross Siberia. The estimates are good
enough to sort regions, and are used for nothing else. Codes: fly.md 12.1.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from app.suggestions import close_to
from app.validation import WrongValueError

LOCAL = "local"
"""The region of a machine that does not run on Fly. There is no other region, and it belongs to every zone."""

_EARTH_RADIUS_KM = 6_371.0
_GLASS_KM_PER_MS = 200.0
_DETOUR = 1.5
_DETOUR_ROUND_SIBERIA = 2.4
_MACHINES_MS = 2.0


@dataclass(frozen=True, slots=True)
class Place:
    """A point on the map, in degrees north and east."""

    name: str
    north: float
    east: float


REGIONS: Mapping[str, Place] = MappingProxyType(
    {
        "ams": Place("Amsterdam", 52.4, 4.9),
        "arn": Place("Stockholm", 59.3, 18.1),
        "bom": Place("Mumbai", 19.1, 72.9),
        "cdg": Place("Paris", 48.9, 2.4),
        "dfw": Place("Dallas", 32.8, -96.8),
        "ewr": Place("Secaucus", 40.8, -74.1),
        "fra": Place("Frankfurt", 50.1, 8.7),
        "gru": Place("São Paulo", -23.5, -46.6),
        "iad": Place("Ashburn", 39.0, -77.5),
        "jnb": Place("Johannesburg", -26.2, 28.0),
        "lax": Place("Los Angeles", 34.1, -118.2),
        "lhr": Place("London", 51.5, -0.1),
        "nrt": Place("Tokyo", 35.7, 139.7),
        "ord": Place("Chicago", 41.9, -87.6),
        "sin": Place("Singapore", 1.3, 103.8),
        "sjc": Place("San Jose", 37.3, -121.9),
        "syd": Place("Sydney", -33.9, 151.2),
        "yyz": Place("Toronto", 43.7, -79.4),
    }
)

HOMES = ("nrt", "fra", "gru", "syd", "iad", "lax")
"""The regions in which a rollout makes one machine each."""


SIMILAR = 0.75
"""Less similar names are those of other cities: Paris is no misspelt Mars."""


def region_code(value: object) -> str:
    """Read the code of a region. Raises WrongValueError, with the code of a city whose name is there instead."""
    if not isinstance(value, str):
        raise WrongValueError
    if value not in REGIONS:
        codes = {code: code for code in REGIONS} | {place.name.lower(): code for code, place in REGIONS.items()}
        raise WrongValueError(suggestion=codes.get(close_to(value.lower(), codes, SIMILAR), ""))
    return value


def between_ms(one: Place, other: Place) -> float:
    """Estimated round trip between two places, in ms."""
    north, other_north = math.radians(one.north), math.radians(other.north)
    east = math.radians(other.east - one.east)
    cosine = math.sin(north) * math.sin(other_north) + math.cos(north) * math.cos(other_north) * math.cos(east)
    distance_km = _EARTH_RADIUS_KM * math.acos(min(1.0, max(-1.0, cosine)))
    return _MACHINES_MS + 2 * _detour(one, other) * distance_km / _GLASS_KM_PER_MS


def _detour(one: Place, other: Place) -> float:
    west, east = sorted((one, other), key=lambda place: place.east)
    from_europe = -25 < west.east < 40 and west.north > 35
    to_north_east_asia = east.east > 110 and east.north > 30
    round_siberia = from_europe and to_north_east_asia
    return _DETOUR_ROUND_SIBERIA if round_siberia else _DETOUR


def rtt_ms(one: str, other: str) -> float:
    """Estimated round trip between two regions, in ms. Raises KeyError for a code that is none of Fly's."""
    return _MACHINES_MS if one == other else between_ms(REGIONS[one], REGIONS[other])


def nearest_first(origin: str, regions: Iterable[str]) -> tuple[str, ...]:
    """The regions by their distance from `origin`, each once; ties by code, so that every machine agrees."""
    return tuple(sorted(set(regions), key=lambda region: (rtt_ms(origin, region), region)))
