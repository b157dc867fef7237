"""``python -m lamincli`` is ``lamin-train``."""

from lamincli.main import main

if __name__ == "__main__":
    main()
