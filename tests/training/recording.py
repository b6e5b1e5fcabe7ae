"""A tracker as accelerate wants it, which keeps what it is given."""

from __future__ import annotations

from typing import Any

from accelerate.tracking import GeneralTracker


class RecordingTracker(GeneralTracker):  # type: ignore[misc]  # accelerate is not analysed
    """Made as an object, or by accelerate under its name; `made` holds the latter.

    Attributes:
        rows: step and numbers.
        pictures: step and pictures.
        settings: hyper-parameters.
        events: "start" and "finish" as they come.
    """

    name = "recording"
    requires_logging_directory = False
    main_process_only = True
    made: list[RecordingTracker] = []  # noqa: RUF012  # shared by all, on purpose

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.arguments, self.options = arguments, options
        self.rows: list[tuple[int | None, dict[str, Any]]] = []
        self.pictures: list[tuple[int | None, dict[str, Any]]] = []
        self.settings: dict[str, Any] = {}
        self.events: list[str] = []
        if arguments:
            self.made.append(self)

    @property
    def tracker(self) -> RecordingTracker:
        return self

    def start(self) -> None:
        self.events.append("start")

    def finish(self) -> None:
        self.events.append("finish")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.rows.append((step, values))

    def log_images(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.pictures.append((step, values))
