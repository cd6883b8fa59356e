"""What a network has learned, and the paper's experiments."""
