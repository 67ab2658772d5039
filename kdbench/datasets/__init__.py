"""Data sets: reading each from its files."""
