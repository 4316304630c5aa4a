"""What a replica does without: modules of this folder stand before those of the same name.

Design choices: Ray Serve and Arrow import pandas wherever they find it, and logging and HTTP
libraries a terminal's colours, although nothing in a replica uses them, which costs each of them
half a second and 65 MB; a folder at the front of the path says that there are none before
anything else is imported, which no code of ours could.
"""
