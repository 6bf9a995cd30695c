"""Data, in rooms. No file here imports anything of ours from outside but `runtime.options`, for
its commands."""
