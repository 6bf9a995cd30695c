"""Data, in rooms: answers, sandbox, problems, world, mine. No file here imports other code of this
project, except that commands import `runtime.options`."""
