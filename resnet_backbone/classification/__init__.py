"""Training, evaluating and analysing the classifiers that the backbones are."""
