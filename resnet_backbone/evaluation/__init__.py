"""What evaluates results files, under the name that it had first."""
