"""Ranges of what the objectives' constructors take."""

import math


def check_weights(**weights: float) -> None:
    """Raise a ValueError unless every weight is 0 or more."""
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name}: got {weight}, wanted 0 or more; 0 leaves the term out")


def check_temperature(temperature: float) -> None:
    """Raise a ValueError unless a temperature is more than 0."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: got {temperature}, wanted more than 0; such as 1.0")
