"""Seeded schedules of faults, played to the operator in virtual time. README.md tells what is in here."""
