"""Shards to checkpoint: recipes, optimizers, the loop."""

from epilogue.train.loop import Trainer
from epilogue.train.meeting import joined_processes
from epilogue.train.metrics import Evaluation
from epilogue.train.progress import Progress
from epilogue.train.recipe import ModelRecipe, OptimizerRecipe, Recipe
from epilogue.train.recipe_parts import ParallelRecipe
from epilogue.train.recipe_reading import read_recipe
from epilogue.train.stopping import StoppedAtOnce

__all__ = [
    "Evaluation",
    "ModelRecipe",
    "OptimizerRecipe",
    "ParallelRecipe",
    "Progress",
    "Recipe",
    "StoppedAtOnce",
    "Trainer",
    "joined_processes",
    "read_recipe",
]
