"""Programs that take too long for the suite: run them by hand, or by their make target."""
