"""Runs: what training leaves in a folder, and a trained run as a recommender."""
