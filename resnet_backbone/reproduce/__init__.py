"""The tables of the paper as trainings and evaluations: what tools/reproduce.py plans, runs and reports."""
