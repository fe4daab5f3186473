"""The analyses of the paper on finished runs, one file each: its question, numbers, figure and command."""
