"""What every run shares: its steps, loop, batches, records, checkpoints, processes and signals."""
