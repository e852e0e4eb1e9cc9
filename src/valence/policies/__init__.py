"""Policies: products of T conditional distributions. `valence.policies.loading` loads language models."""
