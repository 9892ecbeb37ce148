"""What is asked of an image, and the exact text and token ids that it becomes. Text only."""
