"""All commands of the command line, by name."""

import click
from karmafunnel.cli import PLACES, main

COMMANDS = {
    name: command for name in PLACES if (command := main.get_command(click.Context(main), name))
}
