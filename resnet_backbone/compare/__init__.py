"""Comparison of finished runs: figures, how sure their differences are, cost, and the page that shows them."""
