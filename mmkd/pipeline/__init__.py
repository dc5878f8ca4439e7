"""The flow of a recipe: train, embed, evaluate, compress, each on a page."""
