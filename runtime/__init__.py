"""A family on disk, and its tiers running. Imports nothing of ours but itself."""
