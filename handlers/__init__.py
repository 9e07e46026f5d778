"""What runs inside a worker, and what a task of your own is made of."""

from marctl_handlers.core.columns import Column, LogColumn
from marctl_handlers.core.errors import Invalid, LoadError
from marctl_handlers.core.messages import Binary, Stamp
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task

__all__ = ["Binary", "Column", "Invalid", "LoadError", "LogColumn", "Settings", "Stamp", "Task"]
