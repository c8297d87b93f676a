"""How far analognoise and aihwkit agree, and where not."""
