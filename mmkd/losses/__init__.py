"""Objectives: student outputs, a batch and teacher targets to one loss."""
