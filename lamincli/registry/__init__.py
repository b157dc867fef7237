"""Where artifacts go: the one place that writes artifacts to LaminDB."""
