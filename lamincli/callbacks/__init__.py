"""Lightning callbacks: they turn what Lightning does into what is published."""
