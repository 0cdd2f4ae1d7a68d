"""Importance estimators, one a file. Higher scores are more important."""
