"""Figures of a video over time, each chunk as it comes: definitions in `table.METRICS`."""
