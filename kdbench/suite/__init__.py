"""A suite: its pairs, nets, data set, recipes and protocols as typed, self-checking objects."""
