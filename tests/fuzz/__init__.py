"""Fuzzing of what reads strangers' bytes: ``make fuzz``. Nothing here is collected by pytest."""
