"""Prepare: encoded images → uint8 pixels, questions → token ids, on CPU actors. The second stage."""
