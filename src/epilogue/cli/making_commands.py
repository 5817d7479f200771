"""The verbs that make a model and look at how good it is; `commands` gives them their names."""

from epilogue.cli import options


def train(
    recipe: options.Recipe,
    set_: options.Settings = None,
    json: options.Json = False,
) -> None:
    """Train a model by a recipe, or go on with a run that was interrupted.

    Ctrl-C and SIGTERM save the step reached; the same command goes on from there. The newest checkpoint's folder goes
    to stdout. On several GPUs or machines torchrun starts it (docs/training.md).

    Examples:

      epilogue train recipes/epilogue-tiny-2k.yaml --set steps=100

      torchrun --nproc-per-node 8 -m epilogue.train RECIPE.yaml --set parallel.context=2
    """
    from epilogue.cli.train import run_train

    run_train(recipe, overrides=set_ or [], as_json=json)


def evaluate(
    texts: options.Texts,
    model: options.Model = None,
    context: options.Context = 65536,
    contexts: options.Contexts = None,
    targets: options.Targets = 8192,
    books: options.NumBooks = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    epsilon: options.Epsilon = 1e-6,
    json: options.Json = False,
) -> None:
    """Measure bits per byte, and loss by position in the book.

    Fewer bits are better. A model that uses what it has read needs fewer of them further into a book. Books are harder
    in some places than in others, so --contexts scores the same tokens with shorter and longer windows before them.

    Examples:

      epilogue evaluate held-out/ --model runs/mine/step-0001000 --json > runs/mine/by-position.json

      epilogue evaluate held-out/ --contexts 2k,8k,64k
    """
    from epilogue.cli.evaluate import EvaluateOptions, run_evaluate

    run_evaluate(
        EvaluateOptions(
            texts=texts, model=model, context_tokens=context, contexts=contexts, num_targets=targets, max_books=books,
            device=device, dtype=dtype, epsilon=epsilon, as_json=json,
        )
    )  # fmt: skip


def plot(sources: options.PlotSources) -> None:
    """Draw loss curves of runs, loss by position and loss by context as a PNG.

    A run's folder brings its log, though it be under way, and every .json in it that `epilogue evaluate` printed. What
    ends in .png is where the picture goes; RUN/plot.png if there is none. It needs the extra [plot].

    Examples:

      epilogue plot runs/mine

      epilogue plot runs/one runs/other by-context.json compared.png
    """
    from epilogue.cli.plot import run_plot

    run_plot(sources)


def merge(
    adapter: options.Adapter,
    out: options.MergedOut,
    base: options.Base = None,
    dtype: options.MergedDtype = "auto",
) -> None:
    """Put low-rank adapters into the weights they were trained beside: one dense model, which runs anywhere.

    A quantised base is dequantised first. The new folder goes to stdout.

    Example:

      epilogue merge runs/storywriter-7b-qlora/step-0000500 ./my-storywriter
    """
    from epilogue.cli.merge import run_merge

    run_merge(adapter, out, base=base, dtype=dtype)
