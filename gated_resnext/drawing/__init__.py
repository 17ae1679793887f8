"""Pictures of wirings, gates and learning, each drawn once for SVG and PNG.

Importing this imports no matplotlib: its modules fetch it when they draw.
"""
