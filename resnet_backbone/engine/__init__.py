"""What every training shares: output folder, signals, processes, batches, loop, records and checkpoints."""
