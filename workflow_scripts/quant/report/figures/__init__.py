"""Figures, by what they draw."""
