"""Conversions of feedback from one kind to another: pure torch on `[N, K]` tensors."""
