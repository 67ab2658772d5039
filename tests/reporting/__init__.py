"""Tests of kdbench.reporting; `factory` makes synthetic results."""
