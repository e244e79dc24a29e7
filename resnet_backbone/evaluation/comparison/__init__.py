"""Finished runs side by side: what they found, how sure the difference is, what they cost, and a page that shows it."""
