"""Which language is a caption of 5 to 60 characters in? Detectors against labelled texts."""
