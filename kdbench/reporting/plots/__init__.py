"""Plots of one suite and protocol."""
