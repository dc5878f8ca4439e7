"""A made-up multimodal shop whose users follow facets seen only in pictures or only in texts."""

from mmkd.demo.catalogue import SyntheticCatalogue, make_synthetic

__all__ = ["SyntheticCatalogue", "make_synthetic"]
