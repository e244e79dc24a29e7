"""Files on the disk: atomic writing, the checkpoints of a run, locks between processes, and reading YAML and JSON."""
