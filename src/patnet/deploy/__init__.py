"""Deployment: running a network in another runtime, and exporting it to a file."""

from .backend import Backend, ExportInfo, Profile, Request, Runner
from .export import Agreement, Exported, bytes_of, export, load_exported
from .table import BACKENDS, find_backend, prepare, profile, suffixes

__all__ = [
    "BACKENDS",
    "Agreement",
    "Backend",
    "ExportInfo",
    "Exported",
    "Profile",
    "Request",
    "Runner",
    "bytes_of",
    "export",
    "find_backend",
    "load_exported",
    "prepare",
    "profile",
    "suffixes",
]
