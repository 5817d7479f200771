"""HTTP: the APIs that front ends speak, around one engine."""

from epilogue.server.app import Settings, create_app
from epilogue.server.log import write_log
from epilogue.server.protocol import QueueFullError
from epilogue.server.worker import Worker

__all__ = ["QueueFullError", "Settings", "Worker", "create_app", "write_log"]
