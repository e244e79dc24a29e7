"""Image files: reading, listing, checking, videos, and images in class folders."""
