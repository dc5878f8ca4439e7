"""Plain implementations that the benchmarks measure mmkd against."""
