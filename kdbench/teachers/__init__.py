"""Weights of teachers: where they lie, how foreign ones are read, whether they reach what was published."""
