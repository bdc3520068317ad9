"""What a figure was measured on."""
import pathlib
import subprocess


def git(*command):
    return subprocess.run(["git", *command], cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()


def commit():
    """Of this checkout, with a + where files differ from it; "no commit" outside of one."""
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
