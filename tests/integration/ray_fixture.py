"""One local Ray for all tests of a session: `pytest_plugins = ["tests.integration.ray_fixture"]`.

Starting it takes about two seconds. Give actors names that no other test uses, and stop them.
"""

from collections.abc import Iterator

import pytest

from actors.cluster import Cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    with Cluster.connect() as cluster:
        yield cluster
