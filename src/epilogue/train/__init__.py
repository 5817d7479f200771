"""Shards to checkpoint: recipes, optimizers, the loop."""

from epilogue.train.loop import Progress, Trainer
from epilogue.train.meeting import joined_processes
from epilogue.train.metrics import Evaluation
from epilogue.train.recipe import ModelRecipe, OptimizerRecipe, ParallelRecipe, Recipe
from epilogue.train.recipe_reading import read_recipe

__all__ = [
    "Evaluation",
    "ModelRecipe",
    "OptimizerRecipe",
    "ParallelRecipe",
    "Progress",
    "Recipe",
    "Trainer",
    "joined_processes",
    "read_recipe",
]
