"""Azure's regions that have Voice Live, and which of Fly's regions are next to them.

From realtime.md 2.8 (October 2026) and the map. A region that is not here is refused and not guessed at, because
its place decides what is promised about speech.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class AzureRegion:
    """Where a resource is."""

    near: tuple[str, ...]
    """Fly's regions next to it, the nearest first."""
    residency: frozenset[str] = frozenset()
    """What a model promises that thinks where its resource is, or in that part of the world."""


_EU = frozenset({"eu"})

AZURE_REGIONS: Mapping[str, AzureRegion] = MappingProxyType(
    {
        "australiaeast": AzureRegion(("syd",)),
        "brazilsouth": AzureRegion(("gru",)),
        "canadacentral": AzureRegion(("yyz",)),
        "canadaeast": AzureRegion(("yyz",)),
        "centralindia": AzureRegion(("bom",)),
        "centralus": AzureRegion(("ord",)),
        "eastus": AzureRegion(("iad",)),
        "eastus2": AzureRegion(("iad",)),
        "francecentral": AzureRegion(("cdg",), _EU),
        "germanywestcentral": AzureRegion(("fra",), _EU),
        "italynorth": AzureRegion(("fra",), _EU),
        "japaneast": AzureRegion(("nrt",)),
        "northcentralus": AzureRegion(("ord",)),
        "norwayeast": AzureRegion(("arn",)),
        "southcentralus": AzureRegion(("dfw",)),
        "southeastasia": AzureRegion(("sin",)),
        "swedencentral": AzureRegion(("arn",), _EU),
        "switzerlandnorth": AzureRegion(("fra",)),
        "uksouth": AzureRegion(("lhr",)),
        "westcentralus": AzureRegion(("dfw",)),
        "westeurope": AzureRegion(("ams",), _EU),
        "westus": AzureRegion(("sjc",)),
        "westus2": AzureRegion(("sjc",)),
        "westus3": AzureRegion(("lax",)),
    }
)
