"""Rollouts by vLLM, as a steerkit plugin (``steerkit.samplers``: ``vllm``). Imports nothing: vLLM's workers load it."""
