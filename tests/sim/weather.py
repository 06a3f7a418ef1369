"""How network and disk are just now: one object that all look at and that chance changes."""

from dataclasses import dataclass, fields
from random import Random

SLOW_S = 1.0  # the most that a slow message takes


@dataclass(slots=True)
class Weather:
    """Shares are from 0 to 1. The defaults are a fair day."""

    lost: float = 0.0  # of messages
    doubled: float = 0.0  # of messages
    slow: float = 0.0  # of messages: they are overtaken by many
    broken: float = 0.0  # of connections to the stream server, at each command and reply
    refused: float = 0.0  # of commands to the server: it is full, or loading
    way_mean_s: float = 0.0003
    disk_mean_s: float = 0.0003  # of an append

    def way_s(self, chance: Random) -> float:
        """How long a message takes."""
        way_s = chance.expovariate(1 / self.way_mean_s)
        return way_s + (chance.uniform(0, SLOW_S) if chance.random() < self.slow else 0.0)

    def become(self, other: "Weather") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(other, each.name))


BAD_DAYS = {
    "messages get lost": Weather(lost=0.15),
    "messages come twice": Weather(doubled=0.4, slow=0.2),
    "messages are slow": Weather(slow=0.3, way_mean_s=0.005),
    "the disk is slow": Weather(disk_mean_s=0.03),
    "the disk stalls": Weather(disk_mean_s=0.2),
    "connections break": Weather(broken=0.2),
    "the server is full": Weather(refused=0.5),
    "all at once": Weather(0.1, 0.2, 0.1, 0.1, 0.1, 0.002, 0.01),
}
