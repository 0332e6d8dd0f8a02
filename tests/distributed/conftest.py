from collections.abc import Iterator

import pytest
from networks import State, history, uneven
from world import World


@pytest.fixture(scope="session")
def worlds() -> Iterator[dict[int, World]]:
    worlds = {size: World(size) for size in (2, 4)}
    yield worlds
    for world in worlds.values():
        world.end()


@pytest.fixture(params=[2, 4], ids=lambda size: f"{size} ranks")
def world(request: pytest.FixtureRequest, worlds: dict[int, World]) -> World:
    return worlds[request.param]


@pytest.fixture
def world4(worlds: dict[int, World]) -> World:
    return worlds[4]


@pytest.fixture(scope="session")
def states() -> list[State]:
    return history(uneven(), steps=5)
