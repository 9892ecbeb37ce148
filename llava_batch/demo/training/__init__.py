"""How the demo model was made: its data, its training, its card. No run needs it."""
