"""Shipping: a trained run to a folder that a service loads without mmkd, or to the hub."""
