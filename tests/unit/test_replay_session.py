"""A replay does not mix its data with somebody else's."""

from typing import Any, cast

import pytest

from adapters.client import Client, Location
from adapters.replay.session import StoreNotEmpty, check_store


class Catalogue:
    """A client of which only the locations are asked for."""

    def __init__(self, *codes: str) -> None:
        self._codes = codes

    async def list_locations(self) -> list[Location]:
        return [Location(code, "USD") for code in self._codes]


@pytest.mark.parametrize("codes", [(), ("S0001",), ("S0002", "S0001")])
async def test_a_replay_goes_on_from_its_own_data(codes: tuple[str, ...]) -> None:
    client: Any = Catalogue(*codes)
    await check_store(cast("Client", client), {"S0001", "S0002"})


async def test_a_store_with_other_data_is_refused_by_name() -> None:
    client: Any = Catalogue("S0001", "BERLIN", "BOSTON")
    with pytest.raises(StoreNotEmpty, match=r"2 locations .*\(BERLIN, BOSTON\)"):
        await check_store(cast("Client", client), {"S0001", "S0002"})
