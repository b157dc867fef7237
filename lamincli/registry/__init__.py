"""Where jobs go: the contract of a registry, and LaminDB behind it."""
