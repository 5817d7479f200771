"""Shards to checkpoint: recipes, optimizers, the loop."""

from epilogue.train.loop import Trainer
from epilogue.train.metrics import Evaluation
from epilogue.train.progress import Progress
from epilogue.train.recipe import ModelRecipe, OptimizerRecipe, Recipe
from epilogue.train.recipe_reading import read_recipe

__all__ = ["Evaluation", "ModelRecipe", "OptimizerRecipe", "Progress", "Recipe", "Trainer", "read_recipe"]
