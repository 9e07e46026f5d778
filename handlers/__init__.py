"""What runs inside a worker, and what a task of your own is made of."""

from handlers.core.columns import Column, LogColumn
from handlers.core.errors import Invalid, LoadError
from handlers.core.messages import Binary, Stamp
from handlers.core.settings import Settings
from handlers.core.task import Task

__all__ = ["Binary", "Column", "Invalid", "LoadError", "LogColumn", "Settings", "Stamp", "Task"]
