"""Before and around a run: what is to be done, on what, how far it is, and what came of it."""
