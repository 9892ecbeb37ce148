"""Forward: sequences in, logits out. Everything that runs the model."""
