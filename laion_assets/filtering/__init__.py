"""Scores, and subsets by recipe."""
