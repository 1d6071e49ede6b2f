"""Runs the Python example of README.md as it stands there."""
import pathlib
import re

readme = pathlib.Path(__file__).resolve().parents[2] / "README.md"
example = re.search(r"```python\n(.*?)```", readme.read_text(), re.S).group(1)
exec(compile(example, str(readme), "exec"))
