"""What takes too long for the suite: run by hand, or by its make target."""
