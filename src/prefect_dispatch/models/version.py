"""Version of the package, apart from the package itself, whose public names import everything that needs it."""

__version__ = "0.1.0"
