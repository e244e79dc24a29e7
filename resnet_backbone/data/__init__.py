"""Detection and classification data: reading, checking, transforms, and preparing data sets."""
