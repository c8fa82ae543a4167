"""Language detectors on labelled captions of 5 to 60 characters."""
