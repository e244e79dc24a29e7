"""Fetching, generating and converting data sets."""
