"""Decides which tier answers a call."""
