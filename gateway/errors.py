"""Errors of the border, each with the exit code of the command line. Messages say what to do."""

from __future__ import annotations


class GatewayError(Exception):
    """Base of every error of this package."""

    exit_code = 1


class UsageError(GatewayError):
    """The command was called in a way that cannot work."""

    exit_code = 2


class ConfigError(GatewayError):
    """A configuration file or option is wrong."""

    exit_code = 2


class BadKey(GatewayError):
    """A key or key file is malformed, or may not be used."""

    exit_code = 2


class StoreProblem(GatewayError):
    """The block store or the Nix store cannot be used."""

    exit_code = 3


class NarinfoError(GatewayError):
    """A narinfo that is not accepted."""


class NotTrusted(GatewayError):
    """No trusted key signed this path."""


class UpstreamError(GatewayError):
    """An upstream failed, or answered nonsense: that says nothing about the path."""


class UpstreamLied(UpstreamError):
    """An upstream gave bytes that cannot be what was signed, whatever else it may have."""


class Unproven(UpstreamError):
    """What an upstream gave may be right, but nothing says so."""


class UpstreamResting(UpstreamError):
    """An upstream is not asked, because it failed lately."""


class ScoutBroken(GatewayError):
    """The process that asks beside this one ended, is silent or says what makes no sense."""


class Stopping(UpstreamError):
    """An upstream is not asked, because this process stops: nothing to hold against it."""
