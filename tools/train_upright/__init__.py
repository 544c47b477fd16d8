"""Trains and measures what tells pages that stand from turned ones: ``python -m tools.train_upright --help``."""
