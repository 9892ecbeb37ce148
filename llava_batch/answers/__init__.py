"""A folder of answers, read back: its tables, and its thumbnails."""
