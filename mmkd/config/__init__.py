"""Configuration: a YAML recipe to a checked plan. Empty, so that a recipe is read without torch."""
