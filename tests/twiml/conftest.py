import pytest
from starlette.testclient import TestClient

from tests.twiml.world import World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> TestClient:
    return world.client()
