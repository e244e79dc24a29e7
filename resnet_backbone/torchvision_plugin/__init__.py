"""The project's configs on torchvision's detectors: build, train, evaluate with nothing but what pip brings."""
