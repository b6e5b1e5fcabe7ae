"""The choice of a run for a folder of pictures: what is in it, what a step costs here, and what fits the time."""

from hvq.choosing.choice import Choice, choose
from hvq.choosing.chosen_run import choose_run
from hvq.choosing.plan import Plan, PlanInMinutes
from hvq.choosing.survey import FolderSurvey, survey_folder

__all__ = ["Choice", "FolderSurvey", "Plan", "PlanInMinutes", "choose", "choose_run", "survey_folder"]
