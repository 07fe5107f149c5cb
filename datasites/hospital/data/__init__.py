"""A hospital's table becomes the study's data model; who has withdrawn is left out. No message holds a value."""
