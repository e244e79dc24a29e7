"""Files on the disk: atomic writing, locks between processes, the checkpoints of a run, and reading YAML and JSON."""
