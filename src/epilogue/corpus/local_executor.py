"""datatrove's executor on this machine, without its talk. Needs the extra `[data]`."""

from typing import Any

import multiprocess
from datatrove.executor import LocalPipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger

_STEPS = "epilogue.corpus.steps"


class QuietLocalExecutor(LocalPipelineExecutor):
    """Says nothing on stderr, in this process and in its workers; errors are raised all the same."""

    def run(self) -> Any:
        """Run what is missing of the stage.

        Raises:
            Exception: what a task raised.
        """
        logger.disable("datatrove")
        # Workers of every stage are forked from one process that has the imports done.
        multiprocess.set_forkserver_preload([_STEPS])
        return super().run()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        logger.disable("datatrove")
        return super()._run_for_rank(rank, local_rank, node_rank)
