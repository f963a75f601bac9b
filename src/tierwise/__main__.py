"""``python -m tierwise``, for where the command itself is not on the path."""

from importlib import import_module

if __name__ == "__main__":
    import_module("tierwise.plugin.cli").app(prog_name="tierwise")
