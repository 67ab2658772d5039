"""Tests of kdbench.report; `factory` makes synthetic results."""
