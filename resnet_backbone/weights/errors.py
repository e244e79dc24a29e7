"""The one error for weights that cannot be used as they were asked for."""

from collections.abc import Collection

SHOWN_NAMES = 8
SHOWN_CHARACTERS = 200


class WeightsError(ValueError):
    """A weight file, or a choice of weights, that does not fit. The message says what to write instead."""


def shorten(names: Collection[str]) -> str:
    """Return the first names joined by commas, and how many more there are."""
    shown = [name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}..." for name in sorted(names)]
    shown = shown[:SHOWN_NAMES]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
