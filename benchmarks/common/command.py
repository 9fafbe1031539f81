"""The command line of a measurement."""

import argparse


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser whose help is the docstring of a module, line by line."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
