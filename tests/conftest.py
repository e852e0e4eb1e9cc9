"""Shapes and types are checked at run time in the tests, and only there."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("valence", "beartype.beartype")

import torch

torch.set_num_threads(1)
