"""What a bank takes for a charge, in integers; a fraction of a minor unit ends by a named rule."""

from __future__ import annotations

from bisect import bisect_right
from typing import assert_never

from router.policies.channels import Fees, Rounding

PPM = 1_000_000


def share(amount: int, rate_ppm: int, rounding: Rounding) -> int:
    """`rate_ppm` millionths of an amount that is not negative."""
    whole, rest = divmod(amount * rate_ppm, PPM)
    match rounding:
        case Rounding.HALF_UP:
            return whole + (2 * rest >= PPM)
        case Rounding.DOWN:
            return whole
        case Rounding.UP:
            return whole + (rest > 0)
        case Rounding.HALF_EVEN:
            return whole + (2 * rest > PPM or (2 * rest == PPM and whole % 2 == 1))
    assert_never(rounding)


def tier_of(from_volumes: tuple[int, ...], month_volume: int) -> int:
    """The number of the tier that a month's volume so far has reached; the first begins at 0."""
    return bisect_right(from_volumes, max(month_volume, 0)) - 1


def fee(fees: Fees, tier_number: int, amount: int) -> int:
    """For an approval of an amount, in a tier."""
    tier = fees.tiers[tier_number]
    charged = tier.fixed + share(amount, tier.rate_ppm, fees.rounding)
    return min(max(charged, tier.minimum), tier.maximum)
