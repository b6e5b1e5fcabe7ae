"""What a user can cause: recipes print it as one sentence, without a traceback, and exit with a code other than 0."""


class HVQError(ValueError):
    """Base of every error that a user can cause; its text says what was expected, what came, and the way out."""


class ConfigurationError(HVQError):
    """A configuration field that is unknown, malformed, or at odds with another one."""


class DataError(HVQError):
    """Images, labels or codes that are missing, unreadable, or not what the model was made for."""


class CheckpointError(HVQError):
    """A model folder, code folder or training checkpoint that is missing, damaged, or of another model."""


class StorageError(HVQError):
    """A file or folder that cannot be written: a full disk, a folder that is read-only, a quota that is used up.

    Args:
        path: what was to be written.
        reason: what the system says.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(
            f"{path} cannot be written: {reason}; what stood there before is as it was. Make room, or see to the "
            "permissions, or name another folder"
        )
        self.reason = reason


class ProcessError(HVQError):
    """Another process of the run that has ended, or that did not answer in time."""


class TrainingStopped(KeyboardInterrupt):
    """Training was asked to stop, and did so between two steps, with a checkpoint.

    Args:
        message: what a person is told.
        signal_number: of the signal that asked.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
