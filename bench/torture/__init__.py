"""Torture: real processes that are killed, stalled, lied to and starved while they are being paid.

Whatever happens, afterwards it is counted from outside: what the chain charged, against the verified answers in the
buyers' hands. `python -m bench.torture` runs every scenario and ends with 1 if a count is wrong.
"""
