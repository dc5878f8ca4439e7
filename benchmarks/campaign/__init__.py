"""A fair campaign: every variant of a data set with as many trials, the winners with more seeds."""
