"""What every actor has, whatever its stage: shared state, a guard against crashes, counters."""
