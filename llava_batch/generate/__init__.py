"""Generate: prepared rows → answer rows, on the actors that hold the engine. The third stage."""
