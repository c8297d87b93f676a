"""What the commands do, as functions.

Each returns something that can be printed (``parts``) and turned into JSON (``to_dict``).
"""
