"""How every command meets trouble, and how a group of commands has a default one."""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from striate.errors import StriateError

__all__ = ["DefaultGroup", "ErrorGroup"]

_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR}


class ErrorGroup(TyperGroup):
    """The root: an error of Striate or of a disk is one sentence on stderr and exit code 2; Ctrl-C is exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; with ``--traceback`` an error goes through as it is."""
        try:
            return super().invoke(ctx)
        except StriateError as error:
            if ctx.params.get("traceback"):
                raise
            typer.echo(f"striate: {error}", err=True)
            raise typer.Exit(2) from error
        except OSError as error:
            if ctx.params.get("traceback") or isinstance(error, BrokenPipeError):
                raise
            where = "" if error.filename is None else f"{error.filename}: "
            advice = " Name a place that can be written to, or make room there." if error.errno in _UNWRITABLE else ""
            typer.echo(f"striate: {where}{error.strerror or type(error).__name__}.{advice}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            message = "Stopped. Every file that was finished is kept, and none is half written."
            typer.echo(f"\nstriate: {message}", err=True)
            raise typer.Exit(130) from error


class DefaultGroup(TyperGroup):
    """A group whose first command also runs without being named: ``striate papers mamba``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the first command's name in front, unless a command or help is asked for."""
        names = self.list_commands(ctx)
        if not args or args[0] not in {*names, "--help"}:
            args = [names[0], *args]
        return super().parse_args(ctx, args)
