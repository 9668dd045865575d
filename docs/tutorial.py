"""The tutorial: cells of a notebook, as a script. Run it as it is, or cell by cell in an editor that knows ``# %%``."""

# %% [markdown]
# # Tutorial
#
# From a trained vector to reading it, in Python. Every cell is a cell of `docs/tutorial.py`; run them in order, in an
# editor that knows `# %%`, or all at once with `python docs/tutorial.py`. A test runs them too, on fewer problems.
#
# ## A model
#
# `tiny-reasoner` comes with steerkit: 6 blocks, 128 wide. A folder or a hub id would do as well.

# %%
from steerkit import SteeringVector, load_model

loaded = load_model("tiny-reasoner")
print(loaded.layout)

# %% [markdown]
# ## A vector
#
# If you have run the [quickstart](quickstart.md), its vector is taken. If not, three steps are trained here, which is
# enough to see every part work and too few to be good: `fit` is the same command that you would type in a shell.

# %%
from pathlib import Path

from steerkit.cli import main

run = Path("runs/quickstart")
if not (run / "vector").is_dir():
    run = Path("runs/tutorial")
    settings = {
        "--config": "configs/quickstart.yaml",
        "--run_dir": str(run),
        "--trainer.max_steps": "3",
        "--data.prompts_per_step": "4",
        "--report.arms": "[]",  # no table at the end: it is made below
    }
    assert main(["fit", *(word for pair in settings.items() for word in pair)]) == 0

vector = SteeringVector.from_pretrained(run / "vector")
print(vector)
print({point: round(norm, 1) for point, norm in vector.norms().items()})

# %% [markdown]
# The norms are lengths in the units of the residual stream, a number a hook point. The last layer's is the longest: the
# stream is longest there, so it takes more to turn it.
#
# ## What it does to a completion
#
# Inside `applied` every token that is decoded is steered. Behind the block the base is as it was, bit for bit.

# %%
from steerkit.datasets import PromptTemplate, open_dataset

problems = open_dataset("arithmetic").load("test")[:64]
text = PromptTemplate().render(loaded.tokenizer, problems[0].problem)
inputs = loaded.tokenizer(text, return_tensors="pt", add_special_tokens=False)


def answer() -> str:
    ids = loaded.base.generate(**inputs, max_new_tokens=96, do_sample=False)
    return loaded.tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


print(problems[0].problem)
print("base:   ", answer())
with vector.applied(loaded.base) as model:
    print("steered:", answer())
print(model.counter, "- proof that each decoded token was steered")

# %% [markdown]
# ## Does it help? Controls and intervals
#
# An arm is the base with something added. The random vector has the norms of the trained one: what it does, the
# direction did not do. `evaluate` draws the same random numbers for all arms.

# %%
from steerkit.evaluation import Arm, Protocol, evaluate

arms = [Arm("base"), Arm("steered", vector), Arm("random", vector.random_like(seed=1))]
measured = evaluate(loaded, arms, problems, Protocol(temperatures=(1.0,), k=2, max_tokens=96))
for row in measured.rows:
    low, high = row["ci95"]
    print(f"{row['arm']:<8} {row['accuracy']:.3f}, 95 % interval {low:.3f} to {high:.3f}, n = {row['n']} x {row['k']}")

# %% [markdown]
# The intervals are over problems. To say that one arm beats another, pair the problems: `steerkit compare A B`, or
# `paired_difference_interval` of `steerkit.evaluation`.
#
# ## What it says: the logit lens
#
# Which tokens does the vector itself point at? An analyzer is an object with settings; `run` measures, saves to a
# folder (and goes on there, if it was killed), `draw` makes the figures.

# %%
from steerkit.analysis import LogitLens, PathPatching, draw

lens = LogitLens(max_tokens=48, streams=4, controls=2).run(
    loaded, {"all": vector}, problems[:8], engine="batched", folder="runs/tutorial_lens"
)
print(len(lens.rows), "rows; the first:", lens.rows[0])
print("Open", draw("runs/tutorial_lens").page)

# %% [markdown]
# Each row has its value, n, a 95 % interval where there is one, and a *control*: the same number for random vectors.
# [What the lens found](analyzers/logit_lens.md) on a fully trained vector.
#
# ## How it acts: patching
#
# Run the steered model with one part of the last block taken from the unsteered run. What is then lost of the effect
# went through that part.

# %%
patched = PathPatching(accuracy=False, max_tokens=48, controls=1).run(
    loaded, {"all": vector}, problems[:8], engine="batched", folder="runs/tutorial_patching"
)
for row in patched.rows[:6]:
    print({key: row[key] for key in row if key not in ("n", "control_ci95")})

# %% [markdown]
# [How to read it](analyzers/path_patching.md). Other questions have [other analyzers](analyzers/README.md).
#
# ## Vectors are values
#
# Sums, multiples, parts, masks: each gives a new vector, which can be measured and saved like any other.

# %%
last = vector.at(-1)  # the last layer's part
gentle = (0.5 * vector).with_mask("first_generated")  # half of it, where the first token is chosen
print(vector.cos(0.5 * vector), last.norms())
gentle.save_pretrained("runs/tutorial_gentle")

# %% [markdown]
# ## Take it elsewhere
#
# Each exporter reads back what it wrote by the other engine's own library and compares logits before it keeps anything.

# %%
import shutil

from steerkit.exporters import Folded

shutil.rmtree("runs/tutorial_folded", ignore_errors=True)  # an exporter overwrites nothing
report = Folded().export(vector, loaded, "runs/tutorial_folded")
print(report.wrote, "|", report.comparison)

# %% [markdown]
# `runs/tutorial_folded` is a Hugging Face checkpoint that needs no steerkit ([serve a vector](howto/serve.md)).
