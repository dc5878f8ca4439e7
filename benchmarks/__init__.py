"""Benchmarks: what mmkd costs beside a plain reference and beside other libraries."""
