"""Losses: student outputs, a batch and teacher targets to one weighted sum and its parts."""
