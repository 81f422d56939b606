"""Other uses of a pair's score: how similar two texts are, and whether they are duplicates."""
