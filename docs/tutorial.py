# %% [markdown]
# # Tutorial
