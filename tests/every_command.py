"""All commands of the command line, by name."""

import click
from karmafunnel.cli import main
from karmafunnel.simulator.commands import MODULES

COMMANDS = {
    name: command for name in MODULES if (command := main.get_command(click.Context(main), name))
}
