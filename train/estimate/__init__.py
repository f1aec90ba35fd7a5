"""What a training will take of memory and time, computed from its settings; no torch."""
