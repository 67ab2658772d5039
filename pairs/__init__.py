"""One YAML file per suite: a data set, its pairs of nets, its recipes and its protocols."""
