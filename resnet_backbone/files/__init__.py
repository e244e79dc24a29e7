"""Files that appear whole or not at all, and the checkpoints of a run among them."""
