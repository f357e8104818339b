"""Removing what a network can do without: which channels belong together, and cutting them out."""
