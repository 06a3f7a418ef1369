"""What a plan is made of: which weeks, and the stated shares of what the data does not hold."""

from dataclasses import dataclass, fields
from typing import Final

from engine import limits

LAST_WEEK: Final = 53  # weeks are numbered 1 to 53; week 1 is the one day 2017-01-01


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Weeks 1 to `weeks`, and shares from 0 to 1, each a probability of a deterministic draw.

    Raises ValueError naming the option that is out of range.
    """

    weeks: int = LAST_WEEK
    online_share: float = 0.08  # of baskets without fuel: bought online, picked up in store
    abandoned_share: float = 0.10  # of online orders: half released, half left to expire
    cancelled_share: float = 0.01  # of committed orders: cancelled before pickup
    returned_share: float = 0.02  # of lines that left a store (fuel excepted)
    elsewhere_share: float = 0.20  # of returns: brought to another store than they came from
    quality_control_share: float = 0.12  # of returns
    damaged_share: float = 0.08  # of returns; all others are restocked
    short_share: float = 0.01  # of cells: opening stock covers only half of what will be asked for
    ttl_ms: int = limits.DEFAULT_TTL_MS  # of holds that will be committed or released
    abandoned_ttl_ms: int = 1_000  # of holds that are left to expire

    def __post_init__(self) -> None:
        if not 1 <= self.weeks <= LAST_WEEK:
            raise ValueError(f"weeks: {self.weeks}, must be 1 to {LAST_WEEK}")
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name.endswith("_share") and not 0.0 <= value <= 1.0:
                raise ValueError(f"{option.name}: {value}, must be 0 to 1")
            if option.name.endswith("ttl_ms") and not (
                limits.MIN_TTL_MS <= value <= limits.MAX_TTL_MS
            ):
                raise ValueError(
                    f"{option.name}: {value}, must be {limits.MIN_TTL_MS} to {limits.MAX_TTL_MS}"
                )
        if self.quality_control_share + self.damaged_share > 1.0:
            raise ValueError("quality_control_share + damaged_share: more than 1")
