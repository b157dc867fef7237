"""The words of `lamin-train` that train nothing; each module has a `main(words)`."""
